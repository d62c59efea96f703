//! A service in a real box under the server's name, from the order to the page and to the end of both.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use super::kit::Home;
use super::network::{Up, create, ok, refused, text, wait_for};

/// Asks for a page at a URL of the loopback: the whole answer as text.
fn get(url: &str, headers: &str) -> std::io::Result<String> {
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let port = authority.rsplit_once(':').unwrap().1;
    let mut stream = TcpStream::connect(("127.0.0.1", port.parse().unwrap()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n{headers}\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn a_page_in_a_box_is_shown_for_its_account_then_for_everybody_then_not_at_all() {
    let home = Home::new();
    let up = Up::start(&home);
    let script = "echo a page of a box > index.html; exec python3 -m http.server 8000";
    let view = ok(home.run(&create("1", script))).json();
    let id = text(&view["id"]);
    let port = format!("{id}:8000");
    let shown = ok(home.run(&["--json", "expose", &port])).json();
    assert!(text(&shown["notice"]).contains("can read it"), "{shown}");
    let url = text(&shown["services"][0]["url"]);
    assert!(get(url, "").unwrap().starts_with("HTTP/1.1 401 "));
    let link = ok(home.run(&["--json", "expose", "open", id])).json();
    let entered = get(text(&link["url"]), "").unwrap();
    let cookie =
        entered.split("set-cookie: ").nth(1).and_then(|rest| rest.split(';').next()).expect(&entered);
    let page = wait_for("page", || {
        let answer = get(url, &format!("Cookie: {cookie}\r\n")).unwrap();
        answer.starts_with("HTTP/1.1 200 ").then(|| answer.into())
    });
    assert!(text(&page).ends_with("a page of a box\n"), "{page}");
    ok(home.run(&["--json", "expose", &port, "--public"]));
    assert!(get(url, "").unwrap().ends_with("a page of a box\n"));
    let people = ok(home.run(&["cluster", "show", id])).stdout;
    assert!(people.contains("http/8000") && people.contains("can read it"), "{people}");
    refused(&home.run(&["--json", "expose", &port, "--public"]), "no_change");
    ok(home.run(&["expose", "remove", &port]));
    assert!(get(url, "").unwrap().starts_with("HTTP/1.1 404 "));
    refused(&home.run(&["--json", "expose", "remove", id]), "no_change");
    ok(home.run(&["--json", "cluster", "rm", id, "--yes"]));
    assert_eq!(up.interrupt().0, 0);
}
