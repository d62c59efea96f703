//! What is said without any network: help, usage errors, refusals that need no server, exit statuses.

use super::kit::Home;

#[test]
fn every_command_explains_itself() {
    let home = Home::new();
    let help = home.run(&["--help"]);
    assert_eq!(help.status, 0);
    insta::assert_snapshot!("help", help.stdout);
    for words in [
        &["up"][..],
        &["quickstart"],
        &["worker", "start"],
        &["login"],
        &["devices"],
        &["devices", "terms"],
        &["country"],
        &["operator", "deny"],
        &["prices"],
        &["explain"],
        &["cluster", "create"],
        &["cluster", "connect"],
        &["expose"],
        &["job", "submit"],
    ] {
        let help = home.run(&[words, &["--help"]].concat());
        assert_eq!(help.status, 0, "{words:?}");
        assert!(help.stdout.contains("Example"), "{words:?} has no example:\n{}", help.stdout);
        assert!(help.stdout.contains("--json") && help.stdout.contains("--data-dir"), "{words:?}");
    }
}

/// Words, exit status, and the code that both forms of the error carry.
const ERRORS: &[(&[&str], i32, &str)] = &[
    (&["devices"], 3, "no_network"),
    (&["cluster", "ls"], 3, "no_network"),
    (&["devices", "--url", "http://127.0.0.1:1"], 3, "unreachable"),
    (&["wallet", "address"], 1, "no_wallet"),
    (&["wallet", "send", "11111111111111111111111111111111", "1.0000001", "--yes"], 1, "not_an_amount"),
    (&["quote", "-n", "0"], 1, "out_of_range"),
    (&["quote", "--memory", "1MiB"], 1, "out_of_range"),
    (&["quote", "--engine", "vm"], 1, "unsupported"),
    (&["quote", "--max-total", "1", "--min-reliability", "101"], 1, "out_of_range"),
    (&["quote", "--prefer", "near"], 1, "out_of_range"),
    (&["country", "DE"], 3, "no_network"),
    (&["quote", "--engine", "kubernetes"], 1, "unsupported"),
    (&["cluster", "create", "--engine", "command"], 1, "out_of_range"),
    (&["cluster", "create", "--", "echo"], 1, "out_of_range"),
    (&["devices", "set", "dev_00000000000000000000000000"], 3, "no_network"),
    (&["prices"], 3, "no_network"),
    (&["explain", "dev_00000000000000000000000000"], 3, "no_network"),
    (&["journal", "head"], 3, "no_network"),
];

#[test]
fn errors_have_a_code_and_an_exit_status_in_both_forms() {
    for (words, status, code) in ERRORS {
        let home = Home::new();
        let people = home.run(words);
        assert_eq!(people.status, *status, "{words:?}: {}", people.text());
        assert!(people.stderr.starts_with(&format!("error[{code}]: ")), "{words:?}: {}", people.text());
        let program = home.run(&[&["--json"], *words].concat());
        assert_eq!(program.status, *status, "{words:?}");
        assert_eq!(program.json()["error"]["code"], *code, "{words:?}");
    }
}

/// Words that make no sense: status 2 and nothing done.
const USAGE: &[&[&str]] = &[
    &["nonsense"],
    &["quote", "--for", "1y"],
    &["quote", "--memory", "lots"],
    &["quote", "--cpus", "-1"],
    &["cluster", "show", "dev_00000000000000000000000000"],
    &["explain", "key_00000000000000000000000000"],
    &["cluster", "extend", "clu_00000000000000000000000000"],
    &["login", "--scopes", "read"],
    &["login", "--new-key", "--scopes", "everything"],
    &["wallet", "send", "nobody", "1"],
    &["up", "--workers", "0"],
    &["job", "submit", "clu_00000000000000000000000000"],
];

#[test]
fn wrong_usage_is_status_2_and_changes_nothing() {
    for words in USAGE {
        let home = Home::new();
        let people = home.run(words);
        assert_eq!(people.status, 2, "{words:?}: {}", people.text());
        let program = home.run(&[&["--json"], *words].concat());
        assert_eq!(program.status, 2, "{words:?}");
        assert_eq!(program.json()["error"]["code"], "usage", "{words:?}: {}", program.text());
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 0, "{words:?} left files");
    }
}

#[test]
fn errors_read_well() {
    let home = Home::new();
    insta::assert_snapshot!("no_network", home.run(&["devices"]).text());
    insta::assert_snapshot!("unsupported", home.run(&["quote", "--engine", "vm"]).text());
    insta::assert_snapshot!("usage", home.run(&["quote", "--for", "1y"]).text());
    insta::assert_snapshot!("json", home.run(&["--json", "devices"]).text());
}

#[test]
fn a_damaged_wallet_is_named_and_left_alone() {
    let home = Home::new();
    let wallet = home.path().join("wallet.json");
    for damaged in ["", "[1,2,3]", "{}", &format!("{:?}", [7; 64])] {
        std::fs::write(&wallet, damaged).unwrap();
        let said = home.run(&["wallet", "address"]);
        assert_eq!(said.status, 4, "{}", said.text());
        assert!(said.stderr.contains("[HOME]/wallet.json"), "{}", said.text());
        assert_eq!(std::fs::read_to_string(&wallet).unwrap(), damaged);
    }
}

#[test]
fn completions_are_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let said = Home::new().run(&["completions", shell]);
        assert_eq!(said.status, 0);
        assert!(said.stdout.contains("quickstart"), "{shell}");
    }
}
