//! Wrong sizes, engines of later, empty wallets, expired keys, ports in use, broken tools: a clear error, nothing changed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::cloud::{Cloud, PATIENCE, make_wallet, order_words, short_periods, wait_for};

/// Words beside those of a small order, and the code that they are refused with.
const REFUSED: &[(&[&str], &str)] = &[
    (&["-n", "0"], "out_of_range"),
    (&["-n", "257"], "out_of_range"),
    (&["-n", "2", "--cpus", "64"], "no_capacity"),
    (&["--cpus", "0.05"], "out_of_range"),
    (&["--gpus", "8"], "no_capacity"),
    (&["--gpu-model", "none-such", "--gpus", "1"], "no_capacity"),
    (&["--for", "10s"], "out_of_range"),
    (&["--for", "2000d"], "out_of_range"),
    (&["--tag", "none-such"], "no_capacity"),
    (&["--network", "none-such"], "no_capacity"),
    (&["--max-price", "0.000001"], "over_price_cap"),
];

#[test]
fn what_makes_no_sense_is_refused_with_a_code_and_changes_nothing() {
    let mut cloud = Cloud::new(&short_periods());
    cloud.add_agent("supplier-a", "1");
    cloud.wait_pooled();
    let head = |cloud: &Cloud| cloud.renter.say(&["wallet", "show"]);
    let before = head(&cloud);
    for (words, code) in REFUSED {
        let said = cloud.renter.run(&order_words(words, &["/bin/true"]));
        assert_eq!(said.status, 1, "{words:?}: {}", said.text());
        assert_eq!(said.json()["error"]["code"], *code, "{words:?}: {}", said.text());
        assert!(said.json()["error"]["message"].as_str().unwrap().len() > 20, "{}", said.text());
    }
    for engine in ["kubernetes", "container", "vm"] {
        let words = ["cluster", "create", "--engine", engine, "--yes", "--", "/bin/true"];
        let said = cloud.renter.run(&words);
        assert_eq!(
            (said.status, &said.json()["error"]["code"]),
            (1, &"unsupported".into()),
            "{}",
            said.text()
        );
        assert!(said.json()["error"]["message"].as_str().unwrap().contains(engine), "{}", said.text());
    }
    assert_eq!(head(&cloud), before);
    empty_wallet(&cloud);
    expired_key(&cloud);
    port_in_use(&cloud);
    assert_eq!(cloud.renter.say(&["cluster", "ls", "--all"]), serde_json::json!([]));
    cloud.renter.verify();
}

fn empty_wallet(cloud: &Cloud) {
    let poor = cloud.home.path().join("poor");
    make_wallet(&poor);
    let (poor, url) = (poor.display().to_string(), format!("http://127.0.0.1:{}", cloud.port()));
    let words = ["--data-dir", &poor, "--url", &url];
    let said = cloud.renter.run(&[&words[..], &order_words(&["--for", "1h"], &["/bin/true"])].concat());
    let error = &said.json()["error"];
    assert_eq!((said.status, &error["code"]), (1, &"insufficient_funds".into()), "{}", said.text());
}

fn expired_key(cloud: &Cloud) {
    let made = cloud.renter.say(&["login", "--new-key", "--scopes", "read,rent", "--for", "2s"]);
    let key = made["token"]
        .as_str()
        .or_else(|| made["key"].as_str())
        .unwrap_or_else(|| panic!("{made}"))
        .to_owned();
    let with_key = |words: &[&str]| {
        let output =
            cloud.home.command(&[&["--json"], words].concat()).env("IONET_API_KEY", &key).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(with_key(&["cluster", "ls"]).0, Some(0));
    let refused = wait_for("the key's end", PATIENCE, || {
        Some(with_key(&["cluster", "ls"])).filter(|said| said.0 != Some(0))
    });
    assert_eq!(refused.0, Some(1), "{}", refused.1);
    assert!(refused.1.contains("key_unusable") || refused.1.contains("unauthorized"), "{}", refused.1);
    assert!(refused.1.contains("expired") || refused.1.contains("sign in"), "{}", refused.1);
}

fn port_in_use(cloud: &Cloud) {
    let (other, listen) = (cloud.home.path().join("other"), format!("127.0.0.1:{}", cloud.port()));
    let said = cloud.renter.run(&["--data-dir", other.to_str().unwrap(), "server", "--listen", &listen]);
    let error = &said.json()["error"];
    assert!(said.status != 0, "{}", said.text());
    assert_eq!(error["code"], "port_in_use", "{}", said.text());
    assert!(error["message"].as_str().unwrap().contains(&listen), "{}", said.text());
}

#[test]
fn an_environment_that_cannot_be_made_ends_the_order_with_its_reason_and_all_money_back() {
    let mut cloud = Cloud::new(&short_periods());
    let tools = cloud.home.path().join("tools");
    fs::create_dir_all(&tools).unwrap();
    let uv = tools.join("uv");
    fs::write(&uv, "#!/bin/sh\necho 'the interpreter is broken: no module named encodings' >&2\nexit 1\n")
        .unwrap();
    fs::set_permissions(&uv, fs::Permissions::from_mode(0o755)).unwrap();
    cloud.add_agent_with("supplier-a", "1", "3GiB", Some(tools));
    cloud.wait_pooled();
    let words =
        ["cluster", "create", "-n", "1", "--cpus", "0.5", "--memory", "1GiB", "--for", "10m", "--yes"];
    let said = cloud.renter.run(&words);
    let error = &said.json()["error"];
    assert_eq!((said.status, &error["code"]), (1, &"start_failed".into()), "{}", said.text());
    assert!(error["message"].as_str().unwrap().contains("no module named encodings"), "{}", said.text());
    let over = &cloud.renter.say(&["cluster", "ls", "--all"])[0];
    assert_eq!(over["bill"]["total_micro_usd"], 0, "{over}");
    assert_eq!(over["bill"]["refund_micro_usd"], over["bill"]["escrow_micro_usd"], "{over}");
    cloud.renter.check_money();
    cloud.wait_no_boxes();
    cloud.renter.verify();
}
