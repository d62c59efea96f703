//! A real network on this machine: server, relay, workers and boxes in processes of their own.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::kit::{Home, Said};

const LONG_ENOUGH: Duration = Duration::from_mins(2);

/// `ionet up` in the background, ended when dropped.
pub(crate) struct Up {
    child: Option<Child>,
    ready: Value,
}

impl Up {
    pub(crate) fn start(home: &Home) -> Self {
        Self::start_with(home, 2)
    }

    pub(crate) fn start_with(home: &Home, workers: u32) -> Self {
        let words = ["up", "--json", "--workers", &workers.to_string()];
        let mut child = home
            .command(&words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in '{line}'"));
        Self { child: Some(child), ready }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().map(Pid::from_child).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ctrl-C; what it said at the end.
    pub(crate) fn interrupt(mut self) -> (i32, String) {
        self.signal(Signal::INT);
        let mut child = self.child.take().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (child.wait().unwrap().code().unwrap(), said)
    }

    /// As a power failure would, for this process alone.
    fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.take().unwrap().wait().unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
    }
}

/// Words that rent boxes with a command.
pub(crate) fn create<'a>(members: &'a str, script: &'a str) -> Vec<&'a str> {
    let words =
        "--json cluster create --engine command --memory 64MiB --disk 16MiB --for 10m --yes --spread -n";
    words.split(' ').chain([members, "--", "/bin/sh", "-c", script]).collect()
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Asks until the answer is as wanted.
pub(crate) fn wait_for(what: &str, mut ask: impl FnMut() -> Option<Value>) -> Value {
    let until = Instant::now() + LONG_ENOUGH;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < until, "no {what} after {LONG_ENOUGH:?}");
        std::thread::yield_now();
    }
}

fn available(home: &Home) -> u64 {
    let wallet = ok(home.run(&["--json", "wallet"])).json();
    let holdings = wallet["holdings"].as_array().unwrap();
    number(&holdings.iter().find(|holding| holding["asset"] == "IOSD").unwrap()["available"])
}

pub(crate) fn ok(said: Said) -> Said {
    assert_eq!(said.status, 0, "{}", said.text());
    said
}

pub(crate) fn refused(said: &Said, code: &str) {
    assert_eq!((said.status, said.json()["error"]["code"].as_str()), (1, Some(code)), "{}", said.text());
}

#[test]
fn what_is_rented_is_metered_settled_and_adds_up() {
    let home = Home::new();
    let up = Up::start(&home);
    let funds = available(&home);
    assert_eq!(up.ready["devices"].as_array().unwrap().len(), 2, "{}", up.ready);
    let again = ok(home.run(&["--json", "up"])).json();
    assert_eq!((&again["already_running"], &again["running"]["url"]), (&json!(true), &up.ready["url"]));

    let view = ok(home.run(&create("2", "echo hello from $IONET_MEMBER_IP; sleep 600"))).json();
    let id = text(&view["id"]);
    assert_eq!(view["stage"], "running");
    let log = ok(home.run(&["cluster", "logs", id, "--member", "1"])).stdout;
    assert_eq!(log, format!("hello from {}", text(&view["leases"][1]["ip"])));

    // The machine is full: the refusal says so in numbers, and nothing is taken.
    let before = available(&home);
    refused(&home.run(&create("1", "true")), "no_capacity");
    assert_eq!(available(&home), before);
    refused(&home.run(&["--json", "job", "ls", "clu_00000000000000000000000000"]), "unknown_order");
    refused(&home.run(&["--json", "cluster", "connect", id]), "not_ray");

    let extended = ok(home.run(&["--json", "cluster", "extend", id, "--for", "5m", "--yes"])).json();
    assert_eq!(extended["quote"]["request"]["duration_ms"], 15 * 60_000);
    let bundle = home.path().join("support.zip");
    ok(home.run(&["support", "-o", bundle.to_str().unwrap()]));
    no_secret_in(&bundle, text(&view["token"]));

    let ended = ok(home.run(&["--json", "cluster", "rm", id, "--yes"])).json();
    check_bill(&ended, funds - available(&home));
    ok(home.run(&["journal", "verify"]));
    let events = ok(home.run(&["journal", "show", id])).stdout;
    for words in ["accepted", "funded", "placed", "is up", "charged", "removed and wiped", "settled"] {
        assert!(events.contains(words), "no '{words}' in\n{events}");
    }
    let (status, said) = up.interrupt();
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("nothing is rented"), "{said}");
    refused_unreachable(&home);
    ok(home.run(&["journal", "verify"]));
}

fn refused_unreachable(home: &Home) {
    let gone = home.run(&["--json", "devices"]);
    assert_eq!((gone.status, gone.json()["error"]["code"].as_str()), (3, Some("unreachable")));
}

/// Metered time x the quoted rate to the last minor unit, never above the quote, the rest back.
fn check_bill(view: &Value, paid: u64) {
    let bill = &view["bill"];
    let lines = bill["lines"].as_array().unwrap();
    assert_eq!(lines.len(), 2);
    for line in lines {
        let due = number(&line["rate"]) * number(&line["elapsed_ms"]) / 3_600_000;
        assert_eq!(number(&line["compute_micro_usd"]), due, "{line}");
    }
    let sum = |field: &str| lines.iter().map(|line| number(&line[field])).sum::<u64>();
    let total = number(&bill["total_micro_usd"]);
    assert_eq!(total, sum("compute_micro_usd") + sum("fee_micro_usd"), "{bill}");
    assert_eq!(total, paid, "{bill}");
    assert!(total <= number(&view["quote"]["total_micro_usd"]), "{bill}");
    assert_eq!(number(&bill["escrow_micro_usd"]), total + number(&bill["refund_micro_usd"]), "{bill}");
}

fn no_secret_in(bundle: &std::path::Path, token: &str) {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(bundle).unwrap()).unwrap();
    let mut all = String::new();
    for index in 0..zip.len() {
        zip.by_index(index).unwrap().read_to_string(&mut all).unwrap();
    }
    assert!(all.contains("ionet") && all.contains("bubblewrap"), "the bundle is empty");
    assert!(!all.contains(token), "the cluster's token is in the bundle");
}

#[test]
fn a_killed_network_loses_nothing_and_finds_its_clusters_again() {
    let home = Home::new();
    let up = Up::start(&home);
    let view = ok(home.run(&create("2", "echo once; sleep 600"))).json();
    let id = text(&view["id"]);
    up.kill();
    refused_unreachable(&home);

    let up = Up::start(&home);
    let back = wait_for("member heard", || {
        let view = ok(home.run(&["--json", "cluster", "show", id])).json();
        let leases = view["leases"].as_array().unwrap();
        leases
            .iter()
            .all(|lease| lease["contact"] == "connected" && !lease["now"].is_null())
            .then(|| view.clone())
    });
    assert_eq!(back["stage"], "running");
    assert_eq!(back["leases"].as_array().unwrap().len(), 2, "a lease was replaced: {back}");
    // The very same boxes: their programs were not started again.
    assert_eq!(ok(home.run(&["cluster", "logs", id])).stdout, "once");
    let (_, said) = up.interrupt();
    assert!(said.contains(id) && said.contains("paid for"), "{said}");

    let up = Up::start(&home);
    ok(home.run(&["cluster", "rm", id, "--yes"]));
    let (_, said) = up.interrupt();
    assert!(said.contains("nothing is rented"), "{said}");
    ok(home.run(&["journal", "verify"]));
}

#[test]
fn keys_wishes_and_money_are_kept_apart() {
    let home = Home::new();
    let _up = Up::start(&home);
    let key =
        ok(home.run(&["--json", "login", "--new-key", "--scopes", "read,rent", "--cap", "0.001"])).json();
    let with_key = |words: &[&str]| {
        let output = home.command(words).env("IONET_API_KEY", text(&key["token"])).output().unwrap();
        Said::from(output, home.path())
    };
    ok(with_key(&["devices"]));
    refused(&with_key(&create("1", "true")), "key_over_cap");
    refused(
        &with_key(&["--json", "wallet", "send", "11111111111111111111111111111111", "1", "--yes"]),
        "not_allowed",
    );
    ok(home.run(&["keys", "revoke", text(&key["id"])]));
    assert_eq!(with_key(&["--json", "wallet"]).status, 1);

    let devices = ok(home.run(&["--json", "devices", "--mine"])).json();
    let first = text(&devices[0]["id"]).to_owned();
    let paused = ok(home.run(&["--json", "worker", "pause", &first])).json();
    assert_eq!(paused["status"], "paused");
    refused(&home.run(&create("2", "true")), "no_capacity");
    let resumed = ok(home.run(&["--json", "worker", "resume", &first])).json();
    assert_eq!(resumed["status"], "idle");
    let cheaper = ok(home.run(&["--json", "devices", "set", &first, "--ask", "0.01"])).json();
    assert_eq!(cheaper["ask_per_unit"], 10_000);

    let funds = available(&home);
    let other = "So11111111111111111111111111111111111111112";
    ok(home.run(&["wallet", "send", other, "12.5", "--yes"]));
    assert_eq!(available(&home), funds - 12_500_000);
    refused(&home.run(&["--json", "wallet", "send", other, "100000", "--yes"]), "insufficient_funds");
    let activity = ok(home.run(&["activity"])).stdout;
    assert!(activity.contains("signed in") && activity.contains("key used"), "{activity}");
}

/// Takes a minute and needs Python and packages, so it is run by name: `cargo test -p ionet-cli -- --ignored`.
#[test]
#[ignore = "runs Ray; CI runs it with --ignored"]
fn quickstart_runs_a_real_job_on_both_nodes_and_the_bill_adds_up() {
    let home = Home::new();
    let said = ok(home.run(&["quickstart", "--json", "--trials", "4"]));
    let figures = said.json();
    for field in ["ready_seconds", "first_task_seconds", "score", "bill", "payout", "journal_verified"] {
        assert!(!figures[field].is_null(), "no {field} in {figures}");
    }
    assert!(figures["score"].as_f64().unwrap() > 0.9, "{figures}");
    assert_eq!(figures["journal_verified"], true);
    let fits = figures["fits_by_node"].as_object().unwrap();
    assert_eq!(fits.len(), 2, "{figures}");
    assert!(fits.values().all(|fits| number(fits) > 0), "{figures}");
    let bill = &figures["bill"];
    let compute = number(&bill["compute_micro_usd"]);
    let lines = bill["lines"].as_array().unwrap();
    let due =
        lines.iter().map(|line| number(&line["rate"]) * number(&line["elapsed_ms"]) / 3_600_000).sum::<u64>();
    assert_eq!(compute, due, "{bill}");
    // The supplier gets all of it but the fee of 0.25 % on each member's part.
    let paid = number(&figures["payout"]["total_micro_usd"]);
    assert!(paid <= compute && paid + compute / 400 + 2 >= compute, "{figures}");
    refused_unreachable(&home);
}
