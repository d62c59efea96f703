//! A soak: orders go on and on while faults happen, on a testbed with real processes, for a bounded time.
//!
//! Always holds: what happens is chosen by the seed, when it happens is not; every wait is bounded; a broken promise is named
//! and the soak goes on to the end, so that the books are always checked. Not here: how a fault is done (`testbed::fault`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::random::Random;
use crate::testbed::cloud::{Client, Cloud, FUNDS_MICRO_USD, Said, wait_for};
use crate::testbed::fault::{Fault, Kind};
use crate::{LabError, Result};

/// After a fault is undone, everything works again within this.
pub const RECOVERY_BOUND: Duration = Duration::from_mins(2);
/// When faults have stopped, every order ends within this.
pub const END_BOUND: Duration = Duration::from_mins(3);
/// Orders that are alive at once, at most.
const LIVE_ORDERS: usize = 6;
/// Between two faults, in milliseconds.
const PAUSE_MS: (u64, u64) = (500, 5_000);
const BETWEEN_COMMANDS: Duration = Duration::from_millis(250);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A probe of all workers has this long before another is tried.
const PROBE_PATIENCE: Duration = Duration::from_secs(20);
/// Two members that talk over the cluster's own network: the first answers, the second asks until it has three answers.
/// They end with 5, or with 7 if they heard nothing for a minute.
const TALK: &str = "import os, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
me, head = os.environ['IONET_MEMBER_IP'], os.environ['IONET_HEAD_IP']
end = time.monotonic() + 60
s.settimeout(1)
if me == head: s.bind((me, 4000))
n = 0
while time.monotonic() < end and n < 3:
    try:
        if me != head: s.sendto(b'ping', (head, 4000))
        data, peer = s.recvfrom(100)
        if me == head: s.sendto(data, peer)
        n += 1
    except OSError: pass
if me == head and n:
    # The last answer may be lost: whoever still asks gets one.
    try:
        while True: s.sendto(b'again', s.recvfrom(100)[1])
    except OSError: pass
sys.exit(5 if n >= 3 else 7)";

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// For how long faults happen.
    pub duration: Duration,
    /// Of everything that is chosen.
    pub seed: u64,
    /// What may happen.
    pub kinds: Vec<Kind>,
    /// Each kind once, in this order, instead of by chance until the time is over.
    pub in_turn: bool,
}

/// What is known of one kind of fault.
#[derive(Debug, Default, Clone, Serialize)]
pub struct OfKind {
    /// How often.
    pub count: u64,
    /// The longest time from its undoing until everything worked.
    pub longest_recovery_ms: u64,
}

/// The money, as the renter's bills and the books tell.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Money {
    /// Given to the renter.
    pub funded_micro_usd: u64,
    /// What is left.
    pub available_micro_usd: u64,
    /// The sum of all bills.
    pub charged_micro_usd: u64,
    /// Whether these add up, no order holds anything, and no bill is above its escrow.
    pub adds_up: bool,
}

/// What a soak found.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Summary {
    /// Of everything that was chosen.
    pub seed: u64,
    /// Namespaces, or why not.
    pub network: String,
    /// From the first fault to the last check.
    pub seconds: u64,
    /// Orders that the server acknowledged.
    pub orders: u64,
    /// How they ended, by reason.
    pub ends: BTreeMap<String, u64>,
    /// The renter's commands by what came of them.
    pub commands: BTreeMap<String, u64>,
    /// By kind.
    pub faults: BTreeMap<Kind, OfKind>,
    /// Kinds that cannot be done here, and why.
    pub not_done: BTreeMap<Kind, String>,
    /// Over all kinds.
    pub longest_recovery_ms: u64,
    /// After what.
    pub longest_recovery_after: String,
    /// The money check.
    pub money: Money,
    /// Events in the journal, which verified; 0 if it did not.
    pub journal_events: u64,
    /// Promises that were broken; none is good.
    pub broken: Vec<String>,
}

/// What the renter knows for certain.
#[derive(Debug, Default)]
struct Known {
    acknowledged: BTreeSet<String>,
    live: Vec<String>,
    commands: BTreeMap<String, u64>,
    broken: Vec<String>,
}

/// Runs a soak; `stop` ends it early, with all checks. What happens is told to `say`; `keep_logs` is asked at the end,
/// with whether a promise was broken.
pub fn run(
    mut cloud: Cloud,
    plan: &Plan,
    stop: &AtomicBool,
    say: &dyn Fn(&str),
    keep_logs: &dyn Fn(bool) -> Result<()>,
) -> Result<Summary> {
    let begun = Instant::now();
    let mut summary = Summary { seed: plan.seed, ..Summary::default() };
    let mut random = Random::new(plan.seed);
    let kinds = possible(&cloud, plan, &mut summary);
    let rent_on = AtomicBool::new(true);
    let client = cloud.client.clone();
    let renters_random = Random::new(random.bits());
    let known = std::thread::scope(|scope| {
        let renter = scope.spawn(|| rent(&client, renters_random, &rent_on));
        // Whatever comes of the faults, the renter is told to stop, or the scope would wait for ever.
        let faults =
            Faults { cloud: &mut cloud, plan, stop, say, summary: &mut summary }.run(&kinds, &mut random);
        rent_on.store(false, Ordering::Release);
        let known = renter.join().map_err(|_| LabError::Broken("the renter panicked".into()));
        faults.and(known?)
    })?;
    summary.commands = known.commands;
    summary.broken.extend(known.broken);
    say("no more faults; every order ends now");
    let ended = end(&mut cloud, &known.acknowledged, &mut summary, say);
    // While the machines are still there.
    keep_logs(ended.is_err() || !summary.broken.is_empty())?;
    ended?;
    summary.seconds = begun.elapsed().as_secs();
    Ok(summary)
}

/// The kinds that can be done here.
fn possible(cloud: &Cloud, plan: &Plan, summary: &mut Summary) -> Vec<Kind> {
    let mut kinds = plan.kinds.clone();
    kinds.retain(|kind| match kind.missing(cloud) {
        None => true,
        Some(why) => {
            summary.not_done.insert(*kind, why);
            false
        }
    });
    kinds
}

// --- faults -------------------------------------------------------------------------------------

struct Faults<'a> {
    cloud: &'a mut Cloud,
    plan: &'a Plan,
    stop: &'a AtomicBool,
    say: &'a dyn Fn(&str),
    summary: &'a mut Summary,
}

impl Faults<'_> {
    fn run(mut self, kinds: &[Kind], random: &mut Random) -> Result<()> {
        let until = Instant::now() + self.plan.duration;
        let mut turn = kinds.iter();
        // The first order is on its way before anything goes wrong.
        self.pause(2 * PAUSE_MS.1);
        while Instant::now() < until && !self.stop.load(Ordering::Acquire) {
            let next = if self.plan.in_turn { turn.next() } else { random.one_of(kinds) };
            let Some(kind) = next else { break };
            self.one(*kind, random)?;
            self.pause(random.between(PAUSE_MS.0, PAUSE_MS.1));
        }
        Ok(())
    }

    fn pause(&self, ms: u64) {
        let until = Instant::now() + Duration::from_millis(ms);
        while Instant::now() < until && !self.stop.load(Ordering::Acquire) {
            std::thread::sleep(LOOK_EVERY);
        }
    }

    fn one(&mut self, kind: Kind, random: &mut Random) -> Result<()> {
        let injured = if kind == Kind::KillSupervisor && self.plan.in_turn {
            // There is a supervisor only while there is a lease.
            let injure = || self.cloud.injure(kind, random);
            Some(wait_for("a lease", RECOVERY_BOUND, injure)?)
        } else {
            self.cloud.injure(kind, random)?
        };
        let Some((fault, injury)) = injured else { return Ok(()) };
        self.pause(fault.hold_ms);
        let healed = Instant::now();
        self.cloud.heal(&injury)?;
        let well = self.wait_well(healed);
        let took_ms = u64::try_from(healed.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Fault { machine, how, hold_ms, .. } = &fault;
        let what = format!("{kind:?} on {machine} for {hold_ms} ms ({how})");
        (self.say)(&format!("{what}: well again after {took_ms} ms"));
        if let Err(error) = well {
            self.summary.broken.push(format!("{what}: {error}"));
        }
        let of_kind = self.summary.faults.entry(kind).or_default();
        of_kind.count += 1;
        of_kind.longest_recovery_ms = of_kind.longest_recovery_ms.max(took_ms);
        if took_ms > self.summary.longest_recovery_ms {
            self.summary.longest_recovery_ms = took_ms;
            self.summary.longest_recovery_after = what;
        }
        Ok(())
    }

    /// Well: everything runs, every worker is heard, and an order with a member on every worker runs.
    fn wait_well(&mut self, since: Instant) -> Result<()> {
        let left = |since: Instant| RECOVERY_BOUND.saturating_sub(since.elapsed());
        wait_for("every worker's word", left(since), || {
            // What ended by itself (a full disk ends a server) is started again, as an init system would.
            self.cloud.revive()?;
            Ok(self.cloud.all_heard()?.then_some(()))
        })?;
        wait_for("an order that runs on every worker", left(since), || {
            self.cloud.revive()?;
            Ok(probe(&self.cloud.client, self.cloud.worker_names().len())?.then_some(()))
        })
    }
}

/// Whether an order with a member on each of so many workers ran soon; it ends by itself.
fn probe(client: &Client, workers: usize) -> Result<bool> {
    let said = client.ask(&order_words(workers, &["/bin/true"]))?;
    let (0, Some(id)) = (said.status, said.json["id"].as_str()) else { return Ok(false) };
    let begun = Instant::now();
    while begun.elapsed() < PROBE_PATIENCE {
        let view = client.ask(&["cluster", "show", id])?.json;
        if view["running_since_ms"].is_u64() || view["closed_ms"].is_u64() {
            return Ok(view["running_since_ms"].is_u64());
        }
        std::thread::sleep(LOOK_EVERY);
    }
    client.ask(&["cluster", "rm", id, "--yes", "--no-wait"])?;
    Ok(false)
}

// --- the renter ---------------------------------------------------------------------------------

/// Words that order small boxes on machines of their own and do not wait.
fn order_words<'a>(members: usize, program: &[&'a str]) -> Vec<&'a str> {
    const COUNTS: [&str; 13] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12"];
    let small = "cluster create --engine command --memory 48MiB --disk 16MiB --cpus 0.1 --for 10m --yes --no-wait --spread -n";
    let count = COUNTS[members.min(COUNTS.len() - 1)];
    small.split(' ').chain([count, "--"]).chain(program.iter().copied()).collect()
}

/// A renter that goes on whatever happens: orders that end by themselves, that talk, that are closed early or extended.
fn rent(client: &Client, mut random: Random, on: &AtomicBool) -> Result<Known> {
    let mut known = Known::default();
    while on.load(Ordering::Acquire) {
        if known.live.len() < LIVE_ORDERS {
            order(client, &mut random, &mut known)?;
        } else {
            let at = random.index(known.live.len());
            let cluster = known.live[at].clone();
            let (word, said) = match random.below(5) {
                0 => ("rm", client.ask(&["cluster", "rm", &cluster, "--yes", "--no-wait"])?),
                1 => ("extend", client.ask(&["cluster", "extend", &cluster, "--for", "1m", "--yes"])?),
                _ => ("show", client.ask(&["cluster", "show", &cluster])?),
            };
            note(&mut known, word, &said);
            if said.status == 0 && said.json["closed_ms"].is_u64() {
                known.live.remove(at);
            }
        }
        std::thread::sleep(BETWEEN_COMMANDS);
    }
    Ok(known)
}

fn order(client: &Client, random: &mut Random, known: &mut Known) -> Result<()> {
    let shell = |script| ["/bin/sh", "-c", script];
    let (members, program) = match random.below(4) {
        0 => (1, shell("echo started; exit 3")),
        1 => (1, shell("echo started; sleep 2")),
        2 => (2, ["/usr/bin/python3", "-c", TALK]),
        _ => (1, shell("echo started; while sleep 1; do echo tick; done")),
    };
    let said = client.ask(&order_words(members, &program))?;
    note(known, "create", &said);
    if let (0, Some(id)) = (said.status, said.json["id"].as_str()) {
        known.live.push(id.to_owned());
        known.acknowledged.insert(id.to_owned());
    }
    Ok(())
}

/// An answer is a success, a refusal with its code, or says that the server is away; anything else breaks a promise.
fn note(known: &mut Known, word: &str, said: &Said) {
    let good = matches!(said.status, 0 | 1 | 3) && !said.code().is_empty();
    if !good {
        known.broken.push(format!("'{word}' ended with {}: {}", said.status, said.text));
    }
    *known.commands.entry(format!("{word}: {}", said.code())).or_default() += 1;
}

// --- the end ------------------------------------------------------------------------------------

fn is_over(view: &Value) -> bool {
    view["stage"] == "settled" || view["stage"] == "paid"
}

fn end(
    cloud: &mut Cloud,
    acknowledged: &BTreeSet<String>,
    summary: &mut Summary,
    say: &dyn Fn(&str),
) -> Result<()> {
    cloud.revive()?;
    cloud.wait_served(RECOVERY_BOUND)?;
    let client = cloud.client.clone();
    let all = || -> Result<Vec<Value>> {
        let said = client.must(&["cluster", "ls", "--all"])?;
        said.as_array().cloned().ok_or_else(|| LabError::Broken(format!("no list of clusters: {said}")))
    };
    let open = wait_for("the end of every order", END_BOUND, || {
        let open: Vec<_> = all()?.into_iter().filter(|view| !is_over(view)).collect();
        for view in open.iter().filter(|view| view["closed_ms"].is_null()) {
            client.ask(&["cluster", "rm", view["id"].as_str().unwrap_or_default(), "--yes", "--no-wait"])?;
        }
        Ok(open.is_empty().then_some(()))
    });
    if let Err(error) = open {
        let open = all()?.into_iter().filter(|view| !is_over(view));
        let open: Vec<_> = open.map(|view| format!("{} is {}", view["id"], view["stage"])).collect();
        summary.broken.push(format!("{error}: {}", open.join(", ")));
    }
    let views = all()?;
    summary.orders = views.len() as u64;
    for view in &views {
        let mut reason = view["reason"]["code"].as_str().unwrap_or("open").to_owned();
        if let Some(code) = view["reason"]["exit_code"].as_i64() {
            reason = format!("{reason} with {code}");
        }
        if !["finished", "renter", "time"].iter().any(|usual| reason.starts_with(usual)) {
            say(&format!("{} ended: {}", view["id"], view["reason"]));
        }
        *summary.ends.entry(reason).or_default() += 1;
    }
    let there: BTreeSet<_> = views.iter().filter_map(|view| view["id"].as_str()).collect();
    let lost = acknowledged.iter().filter(|id| !there.contains(id.as_str()));
    summary.broken.extend(lost.map(|id| format!("{id} was acknowledged and is lost")));
    let (money, faults) = judge_money(&client.must(&["wallet", "show"])?, &views);
    summary.money = money;
    summary.broken.extend(faults);
    check_boxes(cloud, summary);
    check_journal(cloud, summary);
    Ok(())
}

/// What the renter lacks was charged, no order holds any, and no bill is above its escrow; what is wrong with that.
fn judge_money(wallet: &Value, views: &[Value]) -> (Money, Vec<String>) {
    let holdings = wallet["holdings"].as_array().into_iter().flatten();
    let iosd = holdings.clone().find(|holding| holding["asset"] == "IOSD").unwrap_or(&Value::Null);
    // What is not there is no sum: it must not look like nothing.
    let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX >> 16);
    let bill = |view: &Value, part: &str| number(&view["bill"][part]);
    let adds_up = |view: &&Value| {
        bill(view, "total_micro_usd") + bill(view, "refund_micro_usd") == bill(view, "escrow_micro_usd")
    };
    let wrong = views.iter().filter(|view| !adds_up(view));
    let mut faults: Vec<_> = wrong.map(|view| format!("a bill does not add up: {view}")).collect();
    let mut money = Money {
        funded_micro_usd: FUNDS_MICRO_USD,
        available_micro_usd: number(&iosd["available"]),
        charged_micro_usd: views.iter().map(|view| bill(view, "total_micro_usd")).sum(),
        adds_up: false,
    };
    let held = number(&iosd["in_orders"]);
    if held != 0 || money.available_micro_usd + money.charged_micro_usd != FUNDS_MICRO_USD {
        faults.push(format!("the money does not add up: {money:?}, {held} held by orders that ended"));
    }
    money.adds_up = faults.is_empty();
    (money, faults)
}

/// No order, no box.
fn check_boxes(cloud: &Cloud, summary: &mut Summary) {
    let left = || cloud.worker_names().iter().map(|name| cloud.supervisors(name).len()).sum::<usize>();
    let gone = wait_for("the end of every supervisor", RECOVERY_BOUND, || Ok((left() == 0).then_some(())));
    summary.broken.extend(gone.err().map(|error| format!("{error}; {} are left", left())));
}

fn check_journal(cloud: &mut Cloud, summary: &mut Summary) {
    match cloud.stop_server_and_verify() {
        Ok(found) if found["verified"] == true => {
            summary.journal_events = found["seq"].as_u64().unwrap_or_default();
        }
        Ok(found) => summary.broken.push(format!("the journal does not verify: {found}")),
        Err(error) => summary.broken.push(error.to_string()),
    }
}

// --- words --------------------------------------------------------------------------------------

impl Summary {
    /// For people.
    pub fn text(&self) -> String {
        let money = &self.money;
        let usd = |micro: u64| format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000);
        let mut lines = vec![
            format!("soak: {} s on {}, seed {}", self.seconds, self.network, self.seed),
            format!("  orders            {}", self.orders),
        ];
        lines.extend(self.ends.iter().map(|(how, count)| format!("    {how:<28} {count:>6}")));
        lines.push("  commands".into());
        lines.extend(self.commands.iter().map(|(how, count)| format!("    {how:<28} {count:>6}")));
        lines.push(format!("  faults            {}", self.faults.values().map(|of| of.count).sum::<u64>()));
        let faults = self.faults.iter();
        lines.extend(faults.map(|(kind, of)| {
            let name = format!("{kind:?}");
            format!("    {name:<28} {:>6}   longest recovery {} ms", of.count, of.longest_recovery_ms)
        }));
        lines.extend(self.not_done.iter().map(|(kind, why)| format!("    {kind:?} not done: {why}")));
        lines.push(format!(
            "  longest recovery  {} ms: {}",
            self.longest_recovery_ms, self.longest_recovery_after
        ));
        lines.push(format!(
            "  money             {} funded = {} left + {} charged: {}",
            usd(money.funded_micro_usd),
            usd(money.available_micro_usd),
            usd(money.charged_micro_usd),
            if money.adds_up { "adds up" } else { "DOES NOT ADD UP" }
        ));
        lines.push(match self.journal_events {
            0 => "  journal           NOT VERIFIED".into(),
            events => format!("  journal           verified, {events} events"),
        });
        lines.extend(self.broken.iter().map(|broken| format!("  BROKEN            {broken}")));
        if self.broken.is_empty() {
            lines.push("  nothing broke".into());
        }
        lines.join("\n")
    }

    /// For programs: one line.
    pub fn json(&self) -> String {
        // Plain data: writing it to memory has no way to fail.
        serde_json::to_string(self).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bill(total: u64, refund: u64) -> Value {
        json!({ "bill": { "total_micro_usd": total, "refund_micro_usd": refund, "escrow_micro_usd": 1000 } })
    }

    #[test]
    fn money_that_is_missing_held_or_wrongly_billed_is_found() {
        let wallet = |available: u64, held: u64| json!({ "holdings": [{ "asset": "IOSD", "available": available, "in_orders": held }] });
        let all = FUNDS_MICRO_USD;
        for (wallet, views, faults) in [
            (wallet(all, 0), vec![], 0),
            (wallet(all - 300, 0), vec![bill(100, 900), bill(200, 800)], 0),
            (wallet(all - 300, 0), vec![bill(100, 900)], 1),
            (wallet(all - 100, 50), vec![bill(100, 900)], 1),
            (wallet(all - 100, 0), vec![bill(100, 800)], 1),
            (wallet(all - 1100, 0), vec![bill(1100, 0)], 1),
            (json!({}), vec![], 1),
            (wallet(all, 0), vec![json!({})], 2),
        ] {
            let (money, found) = judge_money(&wallet, &views);
            assert_eq!(found.len(), faults, "{found:?}");
            assert_eq!(money.adds_up, faults == 0);
        }
    }

    #[test]
    fn an_answer_without_a_code_or_a_crash_breaks_a_promise() {
        let error = |code: &str| json!({ "error": { "code": code } });
        for (status, json, broken) in [
            (0, json!({}), 0),
            (1, error("no_capacity"), 0),
            (3, error("unreachable"), 0),
            (1, json!({}), 1),
            (4, error("internal"), 1),
            (101, json!({}), 1),
            (137, json!({}), 1),
        ] {
            let mut known = Known::default();
            note(&mut known, "show", &Said { status, json, text: String::new() });
            assert_eq!(known.broken.len(), broken, "{status}");
        }
    }
}
