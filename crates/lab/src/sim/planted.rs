//! Faults put in on purpose, so that the checkers can be seen to find them. Each wraps a real part from outside, by
//! changing what goes between two parts; none is in the product.

use super::promise::Promise;

macro_rules! planted {
    ($($(#[doc = $text:literal])+ $name:ident = $word:literal => [$($promise:ident),+],)+) => {
        /// What is broken on purpose.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Planted {
            $($(#[doc = $text])+ $name,)+
        }

        impl Planted {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its stable name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)+
                }
            }

            /// Which promises it breaks: the checkers that may find it.
            pub fn breaks(self) -> &'static [Promise] {
                match self {
                    $(Self::$name => &[$(Promise::$promise),+],)+
                }
            }
        }
    };
}

planted! {
    /// The server's disk says that it synced and did not.
    LyingSync = "lying_sync" => [PublishedDurable, AnswerDurable, Restarts],
    /// Answers leave before the commit.
    AnswerBeforeCommit = "answer_before_commit" => [AnswerDurable],
    /// A request is answered twice.
    AnswerTwice = "answer_twice" => [AnsweredOnce],
    /// A refusal gives another reason than the true one.
    WrongRefusal = "wrong_refusal" => [ReasonsTrue],
    /// A closed order gives another reason than the true one.
    WrongReason = "wrong_reason" => [ReasonsTrue],
    /// A retry gets new ids.
    FreshIdOnRetry = "fresh_id_on_retry" => [OneOrder],
    /// A command id is used for two commands.
    RepeatCommand = "repeat_command" => [OneEffect],
    /// A transfer's id is used twice.
    ReuseTransfer = "reuse_transfer" => [JournalFolds],
    /// A published record is skipped.
    IndexGap = "index_gap" => [PublishedInOrder, JournalFolds],
    /// A snapshot is of a state that is not durable yet.
    SnapshotAhead = "snapshot_ahead" => [SnapshotFolds],
    /// A snapshot has a little more money in it than the journal.
    SnapshotAltered = "snapshot_altered" => [MoneyConserved, SnapshotFolds],
    /// The public mirror misses a byte.
    TornMirror = "torn_mirror" => [PublicFolds],
    /// Damage is cut instead of refused.
    DamageCut = "damage_cut" => [DamageRefused, PublishedDurable, Restarts],
    /// A settled order gives nothing back.
    SkipRefund = "skip_refund" => [BillAddsUp],
    /// Fees are rounded up.
    FeeRoundedUp = "fee_rounded_up" => [ChargeExact],
    /// A charge goes to another supplier.
    WrongSupplier = "wrong_supplier" => [ChargeExact],
    /// Metering by the wall clock instead of by receipts.
    WallClock = "wall_clock" => [ChargeReceipted],
    /// A charge for a device that is silent, without a receipt.
    NoReceipt = "no_receipt" => [ChargeReceipted],
    /// An expired quote is taken.
    ExpiredQuote = "expired_quote" => [QuoteKept],
    /// An order is taken at another price than the quoted one.
    OtherPrice = "other_price" => [QuoteKept],
    /// An extension gives less time than it costs.
    ShortExtension = "short_extension" => [WithinQuote],
    /// Shrinking gives nothing back.
    KeepShrunk = "keep_shrunk" => [WithinQuote],
    /// Members that were let go are charged on.
    ChargeLeavers = "charge_leavers" => [LeaversFree],
    /// A deposit is credited with a unit too much.
    DepositTooHigh = "deposit_too_high" => [ChainOnce],
    /// A payment that was not answered is made again under another id.
    PayTwice = "pay_twice" => [ChainOnce],
    /// A payment that failed is taken for made.
    BelievePayment = "believe_payment" => [ChainOnce],
    /// The chain's answers are lost, all of them.
    LosePayments = "lose_payments" => [OrdersEnd],
    /// A lease is given twice.
    DoubleLease = "double_lease" => [UnitsOnce],
    /// The end of a lease is lost, and what it held with it.
    LostRelease = "lost_release" => [UnitsOnce, JournalFolds],
    /// A box gets more than the lease hired.
    BoxTooLarge = "box_too_large" => [RealCapacity],
    /// What the server does not want is told as ended, known or not.
    EndUnknown = "end_unknown" => [WorkKept],
    /// A silent device's leases are taken for lost.
    EndSilent = "end_silent" => [WorkKept],
    /// A box is said to be wiped and goes on.
    LeaveBox = "leave_box" => [BoxHasLease, WorkKept],
    /// An agent does not remove what it is told to.
    SwallowRemove = "swallow_remove" => [BoxHasLease],
    /// An agent that starts again has forgotten what it started.
    StartTwice = "start_twice" => [OneBox],
    /// What is meant for one device is told to another.
    Misdirect = "misdirect" => [OneBox, NewestWish],
    /// A device goes on reporting boxes that are dead, and is believed.
    DeadBoxes = "dead_boxes" => [LeaseHasBox],
    /// An agent takes older wishes for the newest.
    IgnoreGeneration = "ignore_generation" => [NewestWish],
    /// An agent does not keep on disk what it was told.
    ForgetWish = "forget_wish" => [NewestWish],
    /// A box keeps the rules for what it may reach that it began with.
    KeepEgress = "keep_egress" => [EgressFollowed],
    /// A device that claims what it has not is let in.
    PoolLiar = "pool_liar" => [PoolHonest],
    /// The server sleeps for two minutes now and then.
    Sleepy = "sleepy" => [Calm],
}
