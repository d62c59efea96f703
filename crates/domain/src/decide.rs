//! From a command to its events, or to the refusal that says why not.
//!
//! Always holds: deciding changes nothing; every event that is answered can be folded; a command with an id that
//! was carried out before is refused as existing.

mod course;

use std::collections::BTreeSet;

use crate::account::{Activity, ActivityKind, Scope};
use crate::command::{Actor, Command, CommandBody};
use crate::connectivity::{self, RelayMeasure};
use crate::device::{self, Contact, Device, DeviceChange, DeviceStage, Enrolment, Measured};
use crate::event::{Event, PrivateBody, PublicBody};
use crate::id::{Address, DeviceId, KeyId, LeaseId, OrderId, PayoutId, TransferId};
use crate::ledger::{AccountKey, Owner, Step, Transfer};
use crate::market::{Destination, Egress, Feed, PriceParams, Program, Quote, price, queue, reserve, spot};
use crate::meter::{self, HeldCharge, Receipt, Witness};
use crate::money::Asset;
use crate::order::share::Share;
use crate::order::{self, Acceptance, CloseReason, LeasePhase, Move, Order, Stage};
use crate::payout;
use crate::refusal::Refusal;
use crate::simulated::{self, Simulated};
use crate::state::{REMEMBERED_MS, State};

/// Most orders that one event retires: each is a subject of it, and an event's subjects are bounded.
pub const MAX_RETIRED: usize = 1000;

/// One thing that happened, before it gets its time.
type Happened = (PublicBody, Option<PrivateBody>);

/// Decides a command. The events are in the order in which they must be folded.
pub fn decide(state: &State, command: &Command, now_ms: u64) -> Result<Vec<Event>, Refusal> {
    remembered(state, command, now_ms)?;
    let happened = Decision { state, actor: command.actor, now_ms }.make(&command.body)?;
    let mut id = command.id;
    let event = |(public, private)| Event { at_ms: now_ms, command: id.take(), public, private };
    Ok(happened.into_iter().map(event).collect())
}

/// A command's id carries its time: what is older than is remembered is refused, what is remembered exists.
fn remembered(state: &State, command: &Command, now_ms: u64) -> Result<(), Refusal> {
    let Some(id) = command.id else { return Ok(()) };
    fresh(id.at_ms(), now_ms)?;
    if state.commands.contains(&id) {
        return Err(Refusal::Exists { what: id.to_string() });
    }
    Ok(())
}

/// Whether an id of this time is recent enough to be known if it was used before.
fn fresh(at_ms: u64, now_ms: u64) -> Result<(), Refusal> {
    let age_ms = now_ms.abs_diff(at_ms);
    let limit_ms = if at_ms > now_ms { 10 * 60_000 } else { REMEMBERED_MS };
    if age_ms > limit_ms { Err(Refusal::StaleId { age_ms, limit_ms }) } else { Ok(()) }
}

struct Decision<'a> {
    state: &'a State,
    actor: Actor,
    now_ms: u64,
}

#[expect(clippy::unnecessary_wraps, reason = "the usual last word of a decision")]
fn only(public: PublicBody) -> Result<Vec<Happened>, Refusal> {
    Ok(vec![(public, None)])
}

impl Decision<'_> {
    fn make(&self, body: &CommandBody) -> Result<Vec<Happened>, Refusal> {
        use CommandBody as C;
        match body {
            C::MakeKey { .. } | C::RevokeKey { .. } | C::LogActivity { .. } => self.accounts(body),
            C::Deposit { id, reference, account, asset, amount } => {
                self.deposit(*id, reference, *account, *asset, *amount)
            }
            C::Send { id, to, asset, amount } => self.send(*id, *to, *asset, *amount),
            C::Enrol { .. }
            | C::Rebind { .. }
            | C::BeginCheck { .. }
            | C::ReportCheck { .. }
            | C::ReportLinks { .. }
            | C::NoteContact { .. }
            | C::ChangeDevice { .. }
            | C::ReportYield { .. }
            | C::ArchiveDevice { .. } => self.devices(body),
            C::PlaceOrder { order, quote, program } => self.place_order(*order, quote, program),
            C::Extend { order, added_ms } => self.extend(*order, *added_ms),
            C::ChangeEgress { order, egress, allow } => self.change_egress(*order, *egress, allow),
            C::Share { order, account, share } => self.share(*order, *account, share),
            C::Unshare { order, account } => self.unshare(*order, *account),
            C::Expose { .. }
            | C::Unexpose { .. }
            | C::Grow { .. }
            | C::Shrink { .. }
            | C::Pause { .. }
            | C::Resume { .. }
            | C::ChangeOrder { .. }
            | C::ReplaceMember { .. }
            | C::ReportAiling { .. }
            | C::Scale { .. } => self.course(body),
            C::Close { order, reason } => self.close(*order, reason),
            C::Rate { order, stars } => self.rate(*order, *stars),
            C::DeclareCountry { .. } | C::SetTerms { .. } | C::SetDenyList { .. } => self.terms(body),
            C::ReportReady { .. }
            | C::ReportExit { .. }
            | C::ReportLost { .. }
            | C::ReportRemoved { .. }
            | C::Meter { .. } => self.reports(body),
            _ => self.server_steps(body),
        }
    }

    /// What only the server's own reconcilers and watchers do.
    fn server_steps(&self, body: &CommandBody) -> Result<Vec<Happened>, Refusal> {
        use CommandBody as C;
        self.by_server()?;
        match body {
            C::Found { .. } if self.state.founded => Err(Refusal::Founded),
            C::Found { params } => {
                params.price.as_ref().map_or(Ok(()), PriceParams::check)?;
                only(PublicBody::Founded { params: params.clone() })
            }
            C::BeginTerm { above } => {
                let term = self.now_ms.max(self.state.term.max(*above).saturating_add(1));
                only(PublicBody::TermBegun { term })
            }
            C::Place { order } => self.place(*order),
            C::Hold => self.hold(),
            C::Reprice { order } => only(spot::reprice(self.state, self.state.order(*order)?, self.now_ms)?),
            C::Replace { order } => self.replace(*order),
            C::Start { order } => {
                self.state.order(*order)?.may(Move::Start)?;
                only(PublicBody::OrderStarted { order: *order })
            }
            C::MarkRunning { order } => {
                order::ready(self.state.order(*order)?)?;
                only(PublicBody::OrderRunning { order: *order })
            }
            C::Prove { lease, witness } => self.prove(*lease, witness),
            C::Disprove { lease, reason } => self.disprove(*lease, reason),
            C::Settle { order } => self.settle(*order),
            C::OpenPayout { account } => {
                let (payout, content) = payout::open(self.state, *account, self.now_ms)?;
                only(PublicBody::PayoutOpened { payout, content })
            }
            C::ConfirmPayout { payout, reference, amount } => {
                self.confirm_payout(*payout, reference, *amount)
            }
            C::Retire => self.retire(),
            C::Simulate { devices } => self.simulate(devices),
            C::TakeFeed { feed, signature } => self.take_feed(feed, signature),
            C::SetLoads => {
                let loads = price::check_loads(self.state, self.now_ms)?;
                only(PublicBody::LoadsSet { loads })
            }
            _ => Err(self.not_allowed("do this", "another kind of sender")),
        }
    }

    fn not_allowed(&self, what: &str, takes: &str) -> Refusal {
        let who = match self.actor {
            Actor::Wallet(address) => address.to_string(),
            Actor::Key(_, key) => key.to_string(),
            Actor::Device(device) => device.to_string(),
            Actor::Server => "the server".into(),
        };
        Refusal::NotAllowed { who, what: what.into(), takes: takes.into() }
    }

    fn by_server(&self) -> Result<(), Refusal> {
        if self.actor == Actor::Server {
            Ok(())
        } else {
            Err(self.not_allowed("do this", "the server itself"))
        }
    }

    /// The account that acts, if it has the scope.
    fn account(&self, scope: Scope, what: &str) -> Result<Address, Refusal> {
        let takes = || format!("an account, by its wallet or a key with the scope {scope:?}").to_lowercase();
        let account = self.actor.account().ok_or_else(|| self.not_allowed(what, &takes()))?;
        if let Actor::Key(account, id) = self.actor {
            let key = self.state.key(account, id)?;
            key.usable(self.now_ms)?;
            if !key.scopes.contains(&scope) {
                return Err(self.not_allowed(what, &takes()));
            }
        }
        Ok(account)
    }

    fn owner_of(&self, device: DeviceId, what: &str) -> Result<&Device, Refusal> {
        let found = self.state.device(device)?;
        if self.account(Scope::Supply, what)? == found.enrolment.owner {
            return Ok(found);
        }
        Err(self.not_allowed(what, "the device's owner"))
    }

    fn renter_of(&self, order: OrderId, what: &str) -> Result<&Order, Refusal> {
        let found = self.state.order(order)?;
        if self.account(Scope::Rent, what)? == found.account {
            return Ok(found);
        }
        // Whether a cluster of somebody else exists is nobody's business.
        Err(Refusal::UnknownOrder { order })
    }

    fn accounts(&self, body: &CommandBody) -> Result<Vec<Happened>, Refusal> {
        match body {
            CommandBody::MakeKey { key, label, sha256 } => self.make_key(key, label, sha256),
            CommandBody::RevokeKey { key } => {
                let account = self.account(Scope::Keys, "revoke keys")?;
                if self.state.key(account, *key)?.revoked {
                    return Err(Refusal::NoChange { what: key.to_string() });
                }
                let void_before_ms = Some(self.now_ms);
                only(PublicBody::KeyRevoked { account, key: *key, void_before_ms })
            }
            CommandBody::LogActivity { account, kind, key, particulars } => {
                self.by_server()?;
                Ok(vec![Self::activity(*account, *kind, *key, particulars)])
            }
            _ => self.server_steps(body),
        }
    }

    fn activity(account: Address, kind: ActivityKind, key: Option<KeyId>, particulars: &str) -> Happened {
        let particulars = particulars.chars().take(500).collect();
        (PublicBody::Active(Activity { account, kind, key }), Some(PrivateBody::Particulars(particulars)))
    }

    fn make_key(
        &self,
        key: &crate::account::ApiKey,
        label: &str,
        sha256: &str,
    ) -> Result<Vec<Happened>, Refusal> {
        let account = self.account(Scope::Keys, "make keys")?;
        fresh(key.id.at_ms(), self.now_ms)?;
        if self.state.private.key_secrets.contains_key(&key.id) || self.state.key(account, key.id).is_ok() {
            return Err(Refusal::Exists { what: key.id.to_string() });
        }
        if key.expires_ms <= self.now_ms || key.spent_micro_usd != 0 || key.revoked {
            return Err(Refusal::out_of_range("expires_ms", key.expires_ms, "in the future, on a fresh key"));
        }
        if let Actor::Key(account, own) = self.actor {
            let own = self.state.key(account, own)?;
            if !key.scopes.is_subset(&own.scopes) || key.cap_micro_usd > own.cap_micro_usd {
                return Err(self.not_allowed("make a key with more rights than its own", "the wallet"));
            }
        }
        let secret =
            PrivateBody::KeySecret { label: label.chars().take(80).collect(), sha256: sha256.into() };
        Ok(vec![(PublicBody::KeyMade { account, key: key.clone() }, Some(secret))])
    }

    fn deposit(
        &self,
        id: TransferId,
        reference: &str,
        account: Address,
        asset: Asset,
        amount: u64,
    ) -> Result<Vec<Happened>, Refusal> {
        self.by_server()?;
        let debit = AccountKey { owner: Owner::World, asset };
        let credit = AccountKey { owner: Owner::Wallet(account), asset };
        let transfer = Transfer { id, step: Step::Post, debit, credit, amount };
        self.state.ledger.check(&[transfer])?;
        only(PublicBody::Deposited { reference: reference.into(), transfer })
    }

    fn send(&self, id: TransferId, to: Address, asset: Asset, amount: u64) -> Result<Vec<Happened>, Refusal> {
        let from = self.account(Scope::Pay, "send money")?;
        fresh((id.scope >> 80) as u64, self.now_ms)?;
        if id.kind != crate::id::TransferKind::Send {
            return Err(Refusal::BadTransfer { id });
        }
        let debit = AccountKey { owner: Owner::Wallet(from), asset };
        let credit = AccountKey { owner: Owner::Wallet(to), asset };
        let transfer = Transfer { id, step: Step::Post, debit, credit, amount };
        self.state.ledger.check(&[transfer])?;
        only(PublicBody::Sent { transfer })
    }

    fn devices(&self, body: &CommandBody) -> Result<Vec<Happened>, Refusal> {
        use CommandBody as C;
        match body {
            C::Enrol { enrolment, machine_name } => self.enrol(enrolment, machine_name),
            C::Rebind { device, endpoint } => {
                let found = self.owner_of(*device, "rebind the device")?;
                if found.enrolment.endpoint == *endpoint {
                    return Err(Refusal::NoChange { what: device.to_string() });
                }
                only(PublicBody::DeviceRebound { device: *device, endpoint: *endpoint })
            }
            C::BeginCheck { device } => {
                self.by_server()?;
                let found = self.device_in(*device, "check", |stage| *stage != DeviceStage::Archived)?;
                if found.enrolment.simulated {
                    let stage = "simulated, and there is nothing to measure".into();
                    return Err(Refusal::WrongDeviceStage { device: *device, stage, wanted: "check".into() });
                }
                only(PublicBody::DeviceChecking { device: *device })
            }
            C::ReportCheck { device, measured } => self.report_check(*device, measured),
            C::ReportLinks { device, measures } => self.report_links(*device, measures),
            C::NoteContact { device, contact } => self.note_contact(*device, *contact),
            C::ChangeDevice { device, change } => {
                change.check(self.owner_of(*device, "change the device")?)?;
                only(PublicBody::DeviceChanged { device: *device, change: change.clone() })
            }
            C::ReportYield { device, yielding } => self.report_yield(*device, *yielding),
            C::ArchiveDevice { device } => self.archive(*device),
            _ => self.server_steps(body),
        }
    }

    fn enrol(&self, enrolment: &Enrolment, machine_name: &str) -> Result<Vec<Happened>, Refusal> {
        let owner = self.account(Scope::Supply, "enrol a device")?;
        if owner != enrolment.owner {
            return Err(self.not_allowed("enrol a device for somebody else", "the owner's own signature"));
        }
        enrolment.check()?;
        if enrolment.simulated {
            return Err(
                self.not_allowed("enrol a simulated device", "the server itself ('ionet up --simulate')")
            );
        }
        let mut others = self.state.devices.values().filter(|d| d.stage != DeviceStage::Archived);
        if self.state.devices.contains_key(&enrolment.device) {
            return Err(Refusal::Exists { what: enrolment.device.to_string() });
        }
        if others.any(|device| device.enrolment.endpoint == enrolment.endpoint) {
            return Err(Refusal::Exists { what: format!("a device with endpoint {}", enrolment.endpoint) });
        }
        let name = PrivateBody::MachineName(machine_name.chars().take(80).collect());
        Ok(vec![(PublicBody::DeviceEnrolled { enrolment: enrolment.clone() }, Some(name))])
    }

    fn simulate(&self, devices: &[Simulated]) -> Result<Vec<Happened>, Refusal> {
        simulated::allowed(self.state)?;
        if devices.is_empty() || devices.len() > simulated::MOST_AT_ONCE {
            let limit = format!("1 to {}", simulated::MOST_AT_ONCE);
            return Err(Refusal::out_of_range("simulated devices", devices.len(), limit));
        }
        let mut happened = Vec::with_capacity(3 * devices.len());
        for Simulated { enrolment, measured } in devices {
            enrolment.check()?;
            let device = enrolment.device;
            if self.state.devices.contains_key(&device) {
                return Err(Refusal::Exists { what: device.to_string() });
            }
            let judged = device::judge(enrolment, measured).ok().filter(|_| enrolment.simulated);
            let Some((class, tier)) = judged else {
                return Err(Refusal::out_of_range(
                    "simulated device",
                    device,
                    "marked, and such as a check would pass",
                ));
            };
            let name = PrivateBody::MachineName("simulated".into());
            let measured = measured.clone();
            happened.extend([
                (PublicBody::DeviceEnrolled { enrolment: enrolment.clone() }, Some(name)),
                (PublicBody::DeviceContact { device, contact: Contact::Connected }, None),
                (PublicBody::DevicePooled { device, measured, class, tier }, None),
            ]);
        }
        Ok(happened)
    }

    fn device_in(
        &self,
        device: DeviceId,
        wanted: &str,
        allowed: impl Fn(&DeviceStage) -> bool,
    ) -> Result<&Device, Refusal> {
        let found = self.state.device(device)?;
        if allowed(&found.stage) {
            return Ok(found);
        }
        Err(Refusal::WrongDeviceStage { device, stage: found.stage.to_string(), wanted: wanted.into() })
    }

    fn report_check(
        &self,
        device: DeviceId,
        measured: &Result<Measured, String>,
    ) -> Result<Vec<Happened>, Refusal> {
        self.by_device(device)?;
        let found = self.device_in(device, "report a check", |stage| *stage == DeviceStage::Checking)?;
        let refused = |measured: Option<&Measured>, reason: String| {
            only(PublicBody::DeviceRefused { device, measured: measured.cloned(), reason })
        };
        let measured = match measured {
            Ok(measured) => measured,
            Err(reason) => return refused(None, reason.clone()),
        };
        match device::judge(&found.enrolment, measured) {
            Ok((class, tier)) => {
                only(PublicBody::DevicePooled { device, measured: measured.clone(), class, tier })
            }
            Err(reason) => refused(Some(measured), reason),
        }
    }

    /// What relays attest; a measurement that is not newer than what the same relay said before is no news.
    fn report_links(&self, device: DeviceId, measures: &[RelayMeasure]) -> Result<Vec<Happened>, Refusal> {
        self.by_server()?;
        let allowed = |stage: &DeviceStage| *stage != DeviceStage::Archived;
        let found = self.device_in(device, "report links", allowed)?;
        let known = |new: &RelayMeasure| {
            found.links.iter().any(|old| old.relay == new.relay && old.at_ms >= new.at_ms)
        };
        let measures: Vec<_> = measures.iter().filter(|new| !known(new)).cloned().collect();
        if measures.is_empty() {
            return Err(Refusal::NoChange { what: device.to_string() });
        }
        let mut links = found.links.clone();
        connectivity::keep(&mut links, &measures);
        let tier = connectivity::earned_tier(&links);
        only(PublicBody::DeviceLinksMeasured { device, measures, tier })
    }

    fn by_device(&self, device: DeviceId) -> Result<(), Refusal> {
        if matches!(self.actor, Actor::Server) || self.actor == Actor::Device(device) {
            return Ok(());
        }
        Err(self.not_allowed("report for the device", "the device's own link"))
    }

    fn note_contact(&self, device: DeviceId, contact: Contact) -> Result<Vec<Happened>, Refusal> {
        self.by_server()?;
        let known = self.state.device(device)?.contact;
        if std::mem::discriminant(&known) == std::mem::discriminant(&contact) {
            return Err(Refusal::NoChange { what: device.to_string() });
        }
        only(PublicBody::DeviceContact { device, contact })
    }

    fn report_yield(&self, device: DeviceId, yielding: bool) -> Result<Vec<Happened>, Refusal> {
        self.by_device(device)?;
        let found = self.state.device(device)?;
        if found.rules.yielding == yielding {
            return Err(Refusal::NoChange { what: device.to_string() });
        }
        let rules = device::OwnerRules { yielding, ..found.rules.clone() };
        let change = DeviceChange { rules: Some(rules), ..DeviceChange::default() };
        only(PublicBody::DeviceChanged { device, change })
    }

    fn archive(&self, device: DeviceId) -> Result<Vec<Happened>, Refusal> {
        let found = self.owner_of(device, "archive the device")?;
        if found.stage == DeviceStage::Archived {
            return Err(Refusal::NoChange { what: device.to_string() });
        }
        if found.leases > 0 {
            let stage = format!("holding {} leases (drain it first)", found.leases);
            return Err(Refusal::WrongDeviceStage { device, stage, wanted: "archive".into() });
        }
        only(PublicBody::DeviceArchived { device })
    }

    fn place_order(
        &self,
        order: OrderId,
        quote: &Quote,
        program: &Program,
    ) -> Result<Vec<Happened>, Refusal> {
        let account = self.account(Scope::Rent, "rent")?;
        fresh(order.at_ms(), self.now_ms)?;
        let key = self.actor.key();
        let acceptance = Acceptance { order, account, key, quote, program };
        let transfer = order::accept(self.state, &acceptance, self.now_ms)?;
        let accepted = PublicBody::OrderAccepted { order, account, key, quote: quote.clone() };
        let mut happened = vec![
            (accepted, Some(PrivateBody::Program(program.clone()))),
            (PublicBody::OrderFunded { order, transfer }, None),
        ];
        let seats = reserve::kept(self.state, quote, self.now_ms)?;
        if !seats.is_empty() {
            happened.push((PublicBody::OrderKept { order, seats }, None));
        }
        Ok(happened)
    }

    fn extend(&self, order: OrderId, added_ms: u64) -> Result<Vec<Happened>, Refusal> {
        let found = self.renter_of(order, "extend a cluster")?;
        let (duration_ms, transfer) = order::extend(self.state, found, added_ms, self.now_ms)?;
        only(PublicBody::OrderExtended { order, duration_ms, transfer })
    }

    fn change_egress(
        &self,
        order: OrderId,
        egress: Egress,
        allow: &BTreeSet<Destination>,
    ) -> Result<Vec<Happened>, Refusal> {
        let found = self.renter_of(order, "change what a cluster may reach")?;
        order::change_egress(self.state, found, egress, allow)?;
        let private = PrivateBody::Allow(allow.clone());
        Ok(vec![(PublicBody::OrderEgressChanged { order, egress }, Some(private))])
    }

    fn share(&self, order: OrderId, account: Address, share: &Share) -> Result<Vec<Happened>, Refusal> {
        let found = self.renter_of(order, "share a cluster")?;
        order::share::give(found, account, share, self.now_ms)?;
        only(PublicBody::OrderShared { order, account, share: share.clone() })
    }

    fn unshare(&self, order: OrderId, account: Address) -> Result<Vec<Happened>, Refusal> {
        order::share::take_back(self.renter_of(order, "share a cluster")?, account)?;
        only(PublicBody::OrderUnshared { order, account })
    }

    fn rate(&self, order: OrderId, stars: u8) -> Result<Vec<Happened>, Refusal> {
        order::rate(self.renter_of(order, "rate a cluster")?, stars)?;
        only(PublicBody::OrderRated { order, stars })
    }

    /// Who serves whom.
    fn terms(&self, body: &CommandBody) -> Result<Vec<Happened>, Refusal> {
        let unchanged =
            |same: bool, what: String| if same { Err(Refusal::NoChange { what }) } else { Ok(()) };
        let private = &self.state.private;
        match body {
            CommandBody::DeclareCountry { country } => {
                let account = self.account(Scope::Rent, "declare a country")?;
                let known = private.countries.get(&account) == Some(country);
                unchanged(known, format!("the country of {account}"))?;
                Ok(vec![(PublicBody::CountryDeclared { account }, Some(PrivateBody::Country(*country)))])
            }
            CommandBody::SetTerms { device, terms } => {
                self.owner_of(*device, "set the device's terms")?;
                terms.check()?;
                let now = private.terms.get(device);
                unchanged(now.map_or_else(|| terms.is_none(), |now| now == terms), device.to_string())?;
                let terms = PrivateBody::Terms(terms.clone());
                Ok(vec![(PublicBody::DeviceTermsSet { device: *device }, Some(terms))])
            }
            CommandBody::SetDenyList { list } => {
                self.by_server()?;
                list.check()?;
                unchanged(private.deny == *list, "the deny list".into())?;
                let entries = u32::try_from(list.entries()).unwrap_or(u32::MAX);
                let list = PrivateBody::DenyList(list.clone());
                Ok(vec![(PublicBody::DenyListSet { entries }, Some(list))])
            }
            _ => self.server_steps(body),
        }
    }

    fn close(&self, order: OrderId, reason: &CloseReason) -> Result<Vec<Happened>, Refusal> {
        let found = match reason {
            CloseReason::Renter if self.actor != Actor::Server => self.renter_of(order, "close a cluster")?,
            _ => {
                self.by_server()?;
                self.state.order(order)?
            }
        };
        if *reason == CloseReason::Preempted {
            spot::check_over(found, self.now_ms)?;
        }
        Self::closing(found, reason.clone())
    }

    fn closing(order: &Order, reason: CloseReason) -> Result<Vec<Happened>, Refusal> {
        order.may(Move::Close)?;
        only(PublicBody::OrderClosing { order: order.id, reason })
    }

    fn place(&self, order: OrderId) -> Result<Vec<Happened>, Refusal> {
        let found = self.state.order(order)?;
        if queue::expired(found, self.now_ms) {
            return Self::closing(found, CloseReason::Expired);
        }
        match order::place(self.state, found, self.now_ms) {
            Ok(leases) => only(PublicBody::OrderPlaced { order, leases, reason: None }),
            Err(
                short @ (Refusal::NoCapacity(_) | Refusal::OverPriceCap { .. } | Refusal::NoChange { .. }),
            ) => {
                if found.resumes() {
                    self.no_place(found)
                } else {
                    self.make_room(found, short)
                }
            }
            Err(other) => Err(other),
        }
    }

    /// Spot orders make room for an order that has no place otherwise. It waits for that once; on demand it then ends.
    fn make_room(&self, order: &Order, short: Refusal) -> Result<Vec<Happened>, Refusal> {
        if spot::waits_for_room(order, self.now_ms) {
            return Err(Refusal::NoChange { what: format!("{} waits for room", order.id) });
        }
        let (waits, limits) =
            (queue::waits(order, self.now_ms), order::limits(self.state, order, self.now_ms));
        let first = order.ways.room_until_ms.is_none() || waits;
        let notices = first.then(|| spot::make_room(self.state, order, &limits, self.now_ms)).flatten();
        match notices {
            Some(notices) => Ok(notices.into_iter().map(|notice| (notice, None)).collect()),
            None if waits => Err(short),
            None => Self::closing(order, CloseReason::NoCapacity),
        }
    }

    fn hold(&self) -> Result<Vec<Happened>, Refusal> {
        let order = queue::holder_due(self.state, self.now_ms);
        if order == self.state.holder {
            return Err(Refusal::NoChange { what: "the line of waiting orders".into() });
        }
        only(PublicBody::QueueHeld { order })
    }

    fn replace(&self, order: OrderId) -> Result<Vec<Happened>, Refusal> {
        let found = self.state.order(order)?;
        if let Some(grown) = self.grown(found) {
            return grown;
        }
        let lost = found.leases.iter().rev().find_map(|(n, lease)| match &lease.phase {
            LeasePhase::Lost { reason } => Some((LeaseId { order, n: *n }, reason.clone())),
            _ => None,
        });
        let (lease, reason) = lost.ok_or_else(|| Refusal::NoChange { what: order.to_string() })?;
        let ran = found.running_since_ms.is_some();
        let give_up =
            if ran { CloseReason::MemberLost { lease, reason } } else { CloseReason::StartFailed { reason } };
        let losses = found.leases.values().filter(|lease| matches!(lease.phase, LeasePhase::Lost { .. }));
        let used_up = losses.count() > found.vacant().len() + order::MAX_REPLACEMENTS as usize;
        match order::replace(self.state, found, self.now_ms) {
            Ok(_) if used_up => Self::closing(found, give_up),
            Ok(leases) => {
                let reason = Some(order::replace_reason(found, &leases));
                only(PublicBody::OrderPlaced { order, leases, reason })
            }
            Err(Refusal::NoCapacity(_) | Refusal::OverPriceCap { .. }) => Self::closing(found, give_up),
            Err(other) => Err(other),
        }
    }

    /// What a device says of its leases.
    fn reports(&self, body: &CommandBody) -> Result<Vec<Happened>, Refusal> {
        use CommandBody as C;
        let id = match body {
            C::ReportReady { lease, .. }
            | C::ReportExit { lease, .. }
            | C::ReportLost { lease, .. }
            | C::ReportRemoved { lease, .. } => *lease,
            C::Meter { receipt, .. } => receipt.lease,
            _ => return self.server_steps(body),
        };
        let (order, lease) = self.state.lease(id)?;
        self.by_device(lease.device)?;
        let going = lease.released.is_some() && !matches!(body, C::ReportRemoved { .. });
        if (lease.ended() || going) && !matches!(body, C::Meter { .. }) {
            return Err(Refusal::NoChange { what: id.to_string() });
        }
        match body {
            C::ReportReady { parts_ms, .. } if lease.phase == LeasePhase::Placed => {
                only(PublicBody::LeaseReady { lease: id, parts_ms: parts_ms.clone() })
            }
            C::ReportExit { exit_code, .. }
                if matches!(lease.phase, LeasePhase::Placed | LeasePhase::Ready) =>
            {
                only(PublicBody::LeaseExited { lease: id, exit_code: *exit_code })
            }
            C::ReportLost { reason, .. } => {
                let reason = reason.chars().take(500).collect();
                only(PublicBody::LeaseLost { lease: id, reason })
            }
            C::ReportRemoved { wipe, .. } => self.removed(id, order, wipe.as_ref()),
            C::Meter { receipt, witness } => self.meter(order, id, receipt, witness),
            _ => Err(Refusal::NoChange { what: id.to_string() }),
        }
    }

    /// A box that went while its order lives was lost; one that went after the order was closed was removed.
    fn removed(
        &self,
        lease: LeaseId,
        order: &Order,
        wipe: Option<&crate::order::WipeReceipt>,
    ) -> Result<Vec<Happened>, Refusal> {
        let released_ms = order.lease(lease.n)?.released.as_ref().map(|released| released.at_ms);
        if order.stage < Stage::Closing && released_ms.is_none() {
            return only(PublicBody::LeaseLost { lease, reason: "the device removed the box".into() });
        }
        if wipe.is_none() {
            let asked_ms = released_ms.or(order.closed_ms).unwrap_or(self.now_ms);
            let waited_ms = self.now_ms.saturating_sub(asked_ms);
            let left_ms = self.state.params.removal_grace_ms.saturating_sub(waited_ms);
            if left_ms > 0 {
                let what = format!("giving up on the device of lease {lease}");
                return Err(Refusal::NotYet { what, in_ms: left_ms });
            }
        }
        only(PublicBody::LeaseRemoved { lease, wipe: wipe.cloned() })
    }

    fn meter(
        &self,
        order: &Order,
        id: LeaseId,
        receipt: &Receipt,
        witness: &Witness,
    ) -> Result<Vec<Happened>, Refusal> {
        let witness = Self::credible(order, id, witness);
        let charge = meter::charge(self.state, order, id.n, receipt, &witness, self.now_ms)?;
        only(PublicBody::LeaseMetered { receipt: receipt.clone(), witness, charge })
    }

    /// Another member is a witness only if somebody else supplies it.
    fn credible(order: &Order, id: LeaseId, witness: &Witness) -> Witness {
        let supplier = |n| order.leases.get(&n).map(|lease| lease.supplier);
        match witness {
            Witness::Member(member) if member.order == id.order && supplier(member.n) != supplier(id.n) => {
                witness.clone()
            }
            Witness::Heartbeats => Witness::Heartbeats,
            _ => Witness::Nobody,
        }
    }

    fn prove(&self, lease: LeaseId, witness: &Witness) -> Result<Vec<Happened>, Refusal> {
        let (order, found) = self.state.lease(lease)?;
        let witnessed = Self::credible(order, lease, witness) != Witness::Nobody;
        let held = if witnessed { found.held.clone() } else { meter::proven(found, self.now_ms) };
        self.finish_held(lease, &held, Step::PostHeld)
            .map(|(count, transfers)| vec![(PublicBody::ChargesProven { lease, count, transfers }, None)])
    }

    fn disprove(&self, lease: LeaseId, reason: &str) -> Result<Vec<Happened>, Refusal> {
        let held = self.state.lease(lease)?.1.held.clone();
        let (count, transfers) = self.finish_held(lease, &held, Step::VoidHeld)?;
        only(PublicBody::ChargesVoided { lease, count, transfers, reason: reason.into() })
    }

    fn finish_held(
        &self,
        lease: LeaseId,
        held: &[HeldCharge],
        step: Step,
    ) -> Result<(u32, Vec<Transfer>), Refusal> {
        if held.is_empty() {
            return Err(Refusal::NoChange { what: format!("no held charge of {lease} is due") });
        }
        let transfers = meter::finish(held, step);
        self.state.ledger.check(&transfers)?;
        Ok((u32::try_from(held.len()).unwrap_or(u32::MAX), transfers))
    }

    fn settle(&self, id: OrderId) -> Result<Vec<Happened>, Refusal> {
        let order = self.state.order(id)?;
        let refund = order::settle(self.state, order)?;
        let mut bill = order.bill();
        bill.refund_micro_usd += refund.map_or(0, |transfer| transfer.amount);
        let settled = PublicBody::OrderSettled { order: id, refund, bill };
        let mut happened = vec![(settled, None)];
        if order::unpaid(self.state, order).is_empty() {
            happened.push((PublicBody::OrderPaid { order: id }, None));
        }
        Ok(happened)
    }

    fn confirm_payout(&self, id: PayoutId, reference: &str, amount: u64) -> Result<Vec<Happened>, Refusal> {
        let payout = self.state.payouts.get(&id).ok_or_else(|| Refusal::Exists { what: id.to_string() })?;
        let paid = payout::confirm(self.state, id, payout, amount, reference)?;
        let orders = match &paid {
            PublicBody::PayoutAdopted { orders, .. } => orders.clone(),
            _ => payout.orders.clone(),
        };
        let only_this = BTreeSet::from([payout.account]);
        let done = orders.into_iter().filter(|order| {
            self.state.orders.get(order).is_some_and(|o| o.stage == Stage::Settled && o.unpaid == only_this)
        });
        let done = done.map(|order| (PublicBody::OrderPaid { order }, None));
        Ok(std::iter::once((paid, None)).chain(done).collect())
    }

    /// Prices elsewhere count only from signers that the network's table names, and only if they are news.
    fn take_feed(&self, feed: &Feed, signature: &str) -> Result<Vec<Happened>, Refusal> {
        feed.check(self.now_ms)?;
        let trusted = self.state.params.price.as_ref().is_some_and(|t| t.feed_signers.contains(&feed.signer));
        if !trusted {
            let (who, takes) =
                (feed.signer.to_string(), "a signer that the network's price table names".into());
            return Err(Refusal::NotAllowed { who, what: "give prices elsewhere".into(), takes });
        }
        let known = self.state.market.as_ref().and_then(|market| market.feeds.get(&feed.signer));
        if known.is_some_and(|known| known.at_ms >= feed.at_ms) {
            return Err(Refusal::NoChange { what: format!("prices elsewhere by {}", feed.signer) });
        }
        only(PublicBody::FeedTaken { feed: feed.clone(), signature: signature.into() })
    }

    fn retire(&self) -> Result<Vec<Happened>, Refusal> {
        let old = |order: &&Order| {
            let kept_until =
                order.closed_ms.unwrap_or(u64::MAX).saturating_add(self.state.params.retention_ms);
            order.stage == Stage::Paid && kept_until <= self.now_ms
        };
        let orders = self.state.orders.values().filter(old).map(|order| order.id);
        let orders: Vec<_> = orders.take(MAX_RETIRED).collect();
        if orders.is_empty() {
            return Err(Refusal::NoChange { what: "nothing has ended long enough ago".into() });
        }
        let forget_ids_before_ms = self.now_ms.saturating_sub(REMEMBERED_MS + 10 * 60_000);
        only(PublicBody::Retired { orders, forget_ids_before_ms })
    }
}
