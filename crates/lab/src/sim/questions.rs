//! What people ask that changes nothing, and what they read: prices with every kind of constraint, the words of
//! refusals, ids and amounts as text, and a way into their boxes. The API answers these from the same rules.
//!
//! Always holds: what is written reads back as what it was, what is not meant is refused, and every refusal has its code
//! and its numbers in its words.

use std::fmt::{Debug, Display};
use std::net::IpAddr;
use std::str::FromStr;

use ionet_api::sign::Grant;
use ionet_domain::device::Tier;
use ionet_domain::id::TransferKind;
use ionet_domain::ledger::{AccountKey, Owner};
use ionet_domain::market::egress::Net;
use ionet_domain::market::{Destination, Egress, EngineKind, Hiding, Request};
use ionet_domain::money::{Asset, HOUR_MS, Rate};
use ionet_domain::order::{CloseReason, ReplaceReason};
use ionet_domain::tunnel::Services;
use ionet_domain::{CommandId, EndpointId, LeaseId, OrderId, PayoutId, Refusal, Stage, TransferId};
use ionet_worker::tunnels::TunnelAuth;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::promise::{Promise, broken, must};
use super::renters::DESTINATIONS;
use super::world::{GIB, World};
use crate::Result;
use crate::random::Random;

/// How long a leave to open tunnels is good for, as the API gives it.
const GRANT_LIFE_MS: u64 = 12 * HOUR_MS;
/// What is no id, no account and no amount.
const NONSENSE: [&str; 8] = ["", "x", "clu_", "bank:IOSD", "wallet:x:IOSD", "x/send", "x/y/z", "fees:GOLD"];

impl World {
    /// One question by chance.
    pub(super) fn question(&mut self, n: usize) -> Result<()> {
        match self.renters[n].random.below(8) {
            0..4 => self.ask_price(n),
            4 => self.read_ids(n),
            5 => self.read_amounts(n),
            6 => self.read_engines(n),
            _ => self.open_tunnel(n),
        }
    }

    /// Asks for something that may not be there.
    fn ask_price(&mut self, n: usize) -> Result<()> {
        let mut request = self.request(n);
        demand(&mut request, &mut self.renters[n].random);
        let Some(quote) = self.quote(n, &request)? else { return Ok(()) };
        let classes: Vec<_> =
            quote.items.iter().filter_map(|item| Some(item.class.as_ref()?.to_string())).collect();
        self.trace.detail(self.at_ms, || format!("renter {n}: could have {classes:?} at {}", quote.rate));
        let mut again = quote.clone();
        again.add_up();
        must(again == quote && reads_as_json(&quote), Promise::WithinQuote, || {
            format!("{quote:?} does not add up")
        })
    }

    /// A refusal as the API would print it.
    pub(super) fn read_refusal(&mut self, n: usize, refusal: &Refusal) -> Result<()> {
        let words = refusal.to_string();
        self.trace.detail(self.at_ms, || format!("renter {n}: is refused, {words}"));
        let (code, text) = (refusal.code(), serde_json::to_value(refusal).unwrap_or_default());
        let same = reads_as_json(refusal) && text["code"] == code;
        must(same && !words.is_empty(), Promise::ReasonsTrue, || format!("{code} is said as {text}: {words}"))
    }

    fn read_ids(&mut self, n: usize) -> Result<()> {
        let (at_ms, number) = (self.true_ms(), self.number());
        let me = &self.renters[n];
        let order = me.orders.last().copied().unwrap_or(OrderId::from_parts(at_ms, number.into()));
        let scope = order.bits();
        let account = |owner| AccountKey { owner, asset: Asset::Iosd };
        reads_back(&order)?;
        reads_back(&LeaseId { order, n: 7 })?;
        reads_back(&me.address)?;
        reads_back(&self.devices[0].enrolment.endpoint)?;
        reads_back(&self.devices[0].id())?;
        reads_back(&CommandId::from_bits(scope))?;
        reads_back(&PayoutId::from_bits(scope))?;
        for kind in [TransferKind::Escrow, TransferKind::Charge, TransferKind::Send] {
            reads_back(&TransferId { scope, kind, n: number })?;
        }
        for key in me.keys.iter().take(1) {
            reads_back(key)?;
        }
        let mine = [Owner::Wallet(me.address), Owner::Earned(me.address), Owner::Order(order)];
        for owner in mine.into_iter().chain([Owner::World, Owner::Fees, Owner::Losses]) {
            reads_back(&account(owner))?;
        }
        let same = OrderId::from_bits(order.bits()) == order;
        must(same, Promise::ReasonsTrue, || format!("{order} has the bits of another id"))
    }

    /// Amounts as people write them.
    fn read_amounts(&mut self, n: usize) -> Result<()> {
        let amount = self.renters[n].random.bits() >> 16;
        for asset in [Asset::Io, Asset::Iosd, Asset::Usdc] {
            let text = asset.show(amount);
            let (number, name) = text.split_once(' ').unwrap_or_default();
            let read = (asset.parse(number), name.to_lowercase().parse::<Asset>());
            must(read == (Ok(amount), Ok(asset)), Promise::ReasonsTrue, || {
                format!("{text} reads as {read:?}")
            })?;
            for wrong in ["", ".5", "1,5", "-1", "1.000000001", "99999999999999999999"] {
                self.must_refuse(n, wrong, asset.parse(wrong))?;
            }
        }
        self.must_refuse(n, "GOLD", "GOLD".parse::<Asset>())
    }

    fn read_engines(&mut self, n: usize) -> Result<()> {
        reads_back_as_text(&EngineKind::Ray)?;
        reads_back_as_text(&EngineKind::Command)?;
        for name in ["kubernetes", "container", "vm", "steam"] {
            self.must_refuse(n, name, name.parse::<EngineKind>())?;
        }
        self.read_network(n)
    }

    /// What a network may be asked for: ways out, destinations and what is hidden, as people write them.
    fn read_network(&mut self, n: usize) -> Result<()> {
        for mode in [Egress::On, Egress::Listed, Egress::Off] {
            reads_back_as_text(&mode)?;
        }
        for text in DESTINATIONS {
            match text.parse::<Destination>() {
                Ok(read) => reads_back_as_text(&read)?,
                Err(refusal) => self.read_refusal(n, &refusal)?,
            }
        }
        destinations_cover_what_they_say()?;
        for tier in [Tier::Basic, Tier::Low, Tier::Medium, Tier::High, Tier::Ultra] {
            reads_back_as_text(&tier)?;
            let (down, up) = tier.least();
            must(Tier::of(down, up) == tier, Promise::ReasonsTrue, || format!("{tier} is not {down}/{up}"))?;
        }
        self.must_refuse(n, "warp", "warp".parse::<Tier>())?;
        let many = (0..=255_u8).flat_map(|net| [1, 2].map(|at| format!("198.51.{net}.{at}").parse()));
        self.must_refuse(n, "512 destinations", Egress::Listed.check(&many.flatten().collect()))?;
        for parts in 0..8 {
            let [private, via_relay, split_relays] = [1, 2, 4].map(|part| parts & part != 0);
            let hiding = Hiding { private, via_relay, split_relays };
            reads_back_as_text(&hiding)?;
            let lines = hiding.explained().count();
            must(
                lines == [private, via_relay, split_relays].iter().filter(|part| **part).count(),
                Promise::ReasonsTrue,
                || format!("{hiding} is explained in {lines} lines"),
            )?;
        }
        for wrong in ["", "*.", "pypi.org:0", "10.0.0.0/33", "2001:db8::/129", "a b", "[::1", "x:99999"] {
            self.must_refuse(n, wrong, wrong.parse::<Destination>())?;
            self.must_refuse(n, wrong, wrong.parse::<Net>())?;
        }
        self.must_refuse(n, "maybe", "maybe".parse::<Egress>())?;
        self.must_refuse(n, "tor", "tor".parse::<Hiding>())
    }

    fn must_refuse<T: Debug>(&mut self, n: usize, text: &str, read: Result<T, Refusal>) -> Result<()> {
        match read {
            Err(refusal) => self.read_refusal(n, &refusal),
            Ok(read) => broken(Promise::ReasonsTrue, format!("'{text}' was taken for {read:?}")),
        }
    }

    /// The server lets a client in; the worker decides by its own wall clock, which may be wrong. Then it keeps people
    /// out or lets them in for too long, and says so; nothing else hangs on that clock.
    fn open_tunnel(&mut self, n: usize) -> Result<()> {
        let (account, server_ms) = (self.renters[n].address, self.now_ms());
        let orders = self.check.shadow.orders.values();
        let mine = orders.filter(|order| order.account == account && order.stage == Stage::Running);
        let leases =
            mine.flat_map(|order| order.members().into_values().map(move |(at, lease)| (order, at, lease)));
        let leases: Vec<_> = leases.collect();
        let Some((order, at, lease)) = self.renters[n].random.one_of(&leases).copied() else { return Ok(()) };
        let Some(device) = self.by_device.get(&lease.device).map(|at| &self.devices[*at]) else {
            return Ok(());
        };
        let (lease, until_ms) = (LeaseId { order: order.id, n: at }, server_ms + GRANT_LIFE_MS);
        let client = ionet_net::EndpointId(account.0);
        let grant = Grant {
            cluster: order.id,
            endpoint: EndpointId(client.0),
            account,
            key: None,
            services: Services::All,
            issued_ms: server_ms,
            not_after_ms: order.ends_ms().map_or(until_ms, |ends_ms| ends_ms.min(until_ms)),
            cut_ms: None,
        };
        let (network, key) = (&self.plan.params.network, &self.server.keys.signing);
        let signature = key.sign(network, &grant);
        let auth = TunnelAuth { grant: grant.clone(), signature, follow: false, ssh_keys: Vec::new() };
        let now_ms = self.true_ms().saturating_add_signed(device.wall_off_ms);
        let said = |auth: &TunnelAuth, lease, client| {
            auth.check(network, key.address(), lease, client, now_ms).err().map(|refused| refused.code)
        };
        let expired = (grant.not_after_ms < now_ms).then(|| "grant_expired".to_owned());
        let other_lease = LeaseId { order: OrderId::from_parts(1, 1), n: at };
        let longer = Grant { not_after_ms: u64::MAX, ..grant };
        let forged = TunnelAuth { grant: longer, ..auth.clone() };
        let bad = Some("bad_grant".to_owned());
        let answers = [
            (said(&auth, lease, client), expired),
            (said(&auth, other_lease, client), bad.clone()),
            (said(&auth, lease, self.server_endpoint), bad.clone()),
            (said(&forged, lease, client), bad),
        ];
        let wrong = answers.iter().find(|(said, truth)| said != truth);
        must(wrong.is_none(), Promise::ReasonsTrue, || format!("a tunnel into {lease}: {wrong:?}"))
    }
}

/// What some destinations are, and what they are not.
fn destinations_cover_what_they_say() -> Result<()> {
    let v4 = |d| IpAddr::from([203, 0, 113, d]);
    let v6 = |last| IpAddr::from([0x2001, 0xdb8, 5, 0, 0, 0, 0, last]);
    for (text, address, port, is) in [
        ("203.0.113.0/25", v4(9), 80, true),
        ("203.0.113.0/25", v4(129), 80, false),
        ("203.0.113.9:80", v4(9), 80, true),
        ("203.0.113.9:80", v4(9), 81, false),
        ("2001:db8:5::/48", v6(7), 1, true),
        ("[2001:db8:5::7]:22", v6(8), 22, false),
        ("pypi.org", v4(9), 80, false),
    ] {
        let found = text.parse::<Destination>().is_ok_and(|found| found.covers(address, port));
        must(found == is, Promise::ReasonsTrue, || format!("{text} and {address} port {port}: {found}"))?;
    }
    for (text, name, is) in [
        ("pypi.org", "pypi.org", true),
        ("pypi.org", "a.pypi.org", false),
        ("*.debian.org:443", "deb.debian.org", true),
        ("*.debian.org:443", "debian.org", false),
        ("203.0.113.9", "203.0.113.9", false),
    ] {
        let found = text.parse::<Destination>().is_ok_and(|found| found.names(name));
        must(found == is, Promise::ReasonsTrue, || format!("{text} and {name}: {found}"))?;
    }
    let net = "2001:db8:5::/48".parse::<Net>();
    let same = net.is_ok_and(|net| Net::of(v6(7), net.prefix_bits()) == Some(net));
    must(same, Promise::ReasonsTrue, || "a network is not that of its addresses".into())
}

/// Makes a request hard to satisfy in one way.
fn demand(request: &mut Request, random: &mut Random) {
    let wanted = &mut request.per_member;
    match random.below(16) {
        0 => request.members = 0,
        1 => wanted.cpu_millis = 50,
        2 => wanted.cpu_millis = 64_000,
        3 => wanted.memory_bytes = GIB / 128,
        4 => wanted.memory_bytes = 900 * GIB,
        5 => wanted.disk_bytes = 9_000 * GIB,
        6 => wanted.gpus = 40,
        7 => request.duration_ms = 1,
        8 => request.asset = Asset::Usdc,
        9 => request.gpu_model = Some("NVIDIA B200".into()),
        10 => request.network = Some("moon".into()),
        11 => _ = request.tags.insert("gold".into()),
        12 => request.max_rate = Some(Rate(1)),
        13 => request.members = 200,
        _ => {}
    }
}

fn reads_as_json<T: Serialize + DeserializeOwned + PartialEq>(it: &T) -> bool {
    let text = serde_json::to_vec(it).unwrap_or_default();
    serde_json::from_slice::<T>(&text).is_ok_and(|read| read == *it)
}

fn reads_back_as_text<T>(it: &T) -> Result<()>
where
    T: FromStr + Display + Debug + PartialEq,
{
    let text = it.to_string();
    let same = text.parse::<T>().is_ok_and(|read| read == *it);
    must(same, Promise::ReasonsTrue, || {
        format!("{it:?} is written as '{text}', which reads as something else")
    })
}

/// Written, read, and not taken for anything else when a letter is missing or too many.
fn reads_back<T>(it: &T) -> Result<()>
where
    T: FromStr + Display + Debug + PartialEq + Serialize + DeserializeOwned,
{
    let text = it.to_string();
    let torn = [&text[..text.len() - 1], &format!("x{text}")].map(str::parse::<T>);
    let wrong =
        torn.iter().flatten().any(|read| read == it) || NONSENSE.iter().any(|text| text.parse::<T>().is_ok());
    let same = reads_as_json(it) && format!("{it:?}") == text && !wrong;
    must(same, Promise::ReasonsTrue, || {
        format!("{it:?} is written as '{text}', which does not name it alone")
    })?;
    reads_back_as_text(it)
}

/// Reasons have stable codes: the same in the journal and in what people read.
pub(super) fn close_code_is_true(reason: &CloseReason) -> Result<()> {
    let text = serde_json::to_value(reason).unwrap_or_default();
    must(text["code"] == reason.code(), Promise::ReasonsTrue, || format!("{reason:?} is said as {text}"))
}

/// The same of replacements.
pub(super) fn replace_code_is_true(reason: ReplaceReason) -> Result<()> {
    let text = serde_json::to_value(reason).unwrap_or_default();
    must(text == reason.code(), Promise::ReasonsTrue, || format!("{reason:?} is said as {text}"))
}
