//! Services under the server's name, from a visitor's side: who gets in, what passes, what is cut, what fails how.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use ionet_domain::account::{ActivityKind, Scope};
use ionet_domain::order::expose::{Access, Kind, Ports};
use ionet_server::AppsTls;
use reqwest::redirect::Policy;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::apps_kit::{Scene, counting_tcp, echoing_udp, echoing_websocket, few, free_port, saying, web};
use crate::http_kit::{run, soon, wallet};

/// A browser that knows one host, follows nothing and keeps no cookies.
fn browser((host, address): &(String, SocketAddr)) -> reqwest::Client {
    reqwest::Client::builder().resolve(host, *address).redirect(Policy::none()).build().expect("client")
}

/// The status and the gateway's own error code, if it is one.
async fn asked(request: reqwest::RequestBuilder) -> (u16, String) {
    let answer = soon("an answer", request.send()).await.expect("an answer");
    let code = answer.headers().get("x-ionet-error").map(|code| code.to_str().expect("text").to_owned());
    (answer.status().as_u16(), code.unwrap_or_default())
}

fn no(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

/// The cookie that a ticket's link gives.
async fn cookie_of(browser: &reqwest::Client, link: &str) -> String {
    let answer = soon("the way in", browser.get(link).send()).await.expect("answer");
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["location"]),
        (303, &"/".parse().expect("header"))
    );
    let set = answer.headers()["set-cookie"].to_str().expect("text").to_owned();
    assert!(set.contains("; HttpOnly; SameSite=Lax") && !set.contains("Domain"), "{set}");
    set.split(';').next().expect("cookie").to_owned()
}

#[test]
fn known_accounts_come_in_by_ticket_cookie_or_key_and_nobody_else_does() {
    run(async {
        let scene = Scene::start(|_| {}).await;
        let port = web().await;
        scene.expose(Kind::Http, port, Access::Owner, &[]).await;
        let place = scene.place().await;
        let (browser, url) = (browser(&place), format!("http://{}:{}/a/b?c=d", place.0, place.1.port()));
        assert_eq!(asked(browser.get(&url)).await, no(401, "not_signed_in"));
        let other = scene.network.signed_in(&wallet(9)).await;
        assert_eq!(other.enter(scene.cluster).await.expect_err("not theirs").code(), "unknown_order");

        let ticket = scene.renter.enter(scene.cluster).await.expect("ticket");
        let link = ticket.url.expose().to_owned();
        let wrong = format!("{link}0");
        assert_eq!(asked(browser.get(&wrong)).await, no(401, "bad_ticket"));
        let cookie = cookie_of(&browser, &link).await;
        assert_eq!(asked(browser.get(&link)).await, no(401, "bad_ticket"), "good once");
        let with_cookie =
            |cookie: &str| browser.post(&url).header("cookie", format!("mine=1; {cookie}")).body("hello");
        let forged = cookie.replace("ionet-apps=", "ionet-apps=1");
        assert_eq!(asked(with_cookie(&forged)).await, no(401, "not_signed_in"));
        let elsewhere = with_cookie(&cookie).header("origin", "http://evil.apps.localhost");
        assert_eq!(asked(elsewhere).await, no(403, "foreign_origin"));
        let sibling =
            with_cookie(&cookie).header("sec-fetch-site", "same-site").header("sec-fetch-mode", "no-cors");
        assert_eq!(asked(sibling).await, no(403, "foreign_origin"));

        let answer = soon("an answer", with_cookie(&cookie).header("x-forwarded-for", "6.6.6.6").send())
            .await
            .expect("answer");
        let said: Value = answer.json().await.expect("json");
        let header = |name: &str| {
            let headers = said["headers"].as_array().expect("list");
            headers
                .iter()
                .filter(|it| it[0] == name)
                .map(|it| it[1].as_str().expect("text"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (said["method"].as_str(), said["uri"].as_str(), said["body"].as_str()),
            (Some("POST"), Some("/a/b?c=d"), Some("hello"))
        );
        assert_eq!(header("cookie"), ["mine=1"], "ours is not the service's business");
        assert_eq!(header("x-forwarded-for"), ["127.0.0.1"], "and who comes is not the visitor's word");
        assert_eq!(header("x-ionet-account"), [wallet(1).address().to_string()]);

        scene.network.stop().await;
    });
}

#[test]
fn names_come_and_go_and_programs_come_by_key() {
    run(async {
        let scene = Scene::start(|_| {}).await;
        let port = web().await;
        scene.expose(Kind::Http, port, Access::Owner, &[]).await;
        let place = scene.place().await;
        let (browser, url) = (browser(&place), format!("http://{}:{}/", place.0, place.1.port()));
        let other = scene.network.signed_in(&wallet(9)).await;
        let link = scene.renter.enter(scene.cluster).await.expect("ticket").url;
        let cookie = cookie_of(&browser, link.expose()).await;
        let with_cookie = |cookie: &str| browser.get(&url).header("cookie", cookie);
        let (_, key) = scene.network.with_key(&scene.renter, &[Scope::Rent], 0).await;
        let (_, reads) = scene.network.with_key(&scene.renter, &[Scope::Read], 0).await;
        let (_, theirs) = scene.network.with_key(&other, &[Scope::Rent], 0).await;
        let with_key = |key: &str| browser.get(&url).header("x-ionet-key", key);
        let said: Value = soon("an answer", with_key(key.expose()).send())
            .await
            .expect("answer")
            .json()
            .await
            .expect("json");
        assert!(!said.to_string().contains(key.expose()), "the key is not the service's business");
        assert_eq!(asked(with_key(reads.expose())).await, no(403, "not_admitted"));
        assert_eq!(asked(with_key(theirs.expose())).await, no(403, "not_admitted"));
        assert_eq!(asked(with_key("ionet_nonsense")).await.0, 401);

        // For somebody by name; what was shown at the door before is void, and again when the name is gone.
        scene.expose(Kind::Http, port, Access::Accounts, &[wallet(9).address()]).await;
        assert_eq!(asked(with_cookie(&cookie)).await, no(401, "not_signed_in"));
        let theirs =
            cookie_of(&browser, other.enter(scene.cluster).await.expect("ticket").url.expose()).await;
        assert_eq!(asked(with_cookie(&theirs)).await.0, 200);
        scene.expose(Kind::Http, port, Access::Public, &[]).await;
        assert_eq!(asked(browser.get(&url)).await.0, 200);
        let set = format!("http://{}:{}/set", place.0, place.1.port());
        let answer = soon("an answer", browser.get(&set).send()).await.expect("answer");
        assert!(answer.headers().get("set-cookie").is_none() && answer.headers().contains_key("x-mine"));
        scene.renter.unexpose(scene.cluster, Kind::Http, port).await.expect("unexpose");
        assert_eq!(asked(with_cookie(&theirs)).await, no(404, "not_exposed"));

        // The API is not here, and neither is a cluster that is not.
        let bare = |host: &str| {
            reqwest::Client::new().get(format!("http://{}/v1/network", place.1)).header("host", host)
        };
        for host in
            ["127.0.0.1", "apps.localhost", "www.apps.localhost", "00000000000000000000000000.apps.localhost"]
        {
            assert_eq!(asked(bare(host)).await, no(404, "not_exposed"), "{host}");
        }
        let log = scene.renter.activity(&ionet_api::rest::EventFilter::default()).await.expect("activity");
        let came = log.iter().filter(|line| line.kind == ActivityKind::ServiceReached).count();
        assert!((2..=6).contains(&came), "each visitor once an hour: {log:?}");
        scene.network.stop().await;
    });
}

#[test]
fn websockets_and_long_answers_pass_and_are_cut_with_their_way_in() {
    run(async {
        let scene = Scene::start(|_| {}).await;
        let port = echoing_websocket().await;
        scene.expose(Kind::Http, port, Access::Public, &[]).await;
        let place = scene.place().await;
        let connect = async || {
            let stream = TcpStream::connect(place.1).await.expect("connect");
            let request =
                format!("ws://{}:{}/", place.0, place.1.port()).into_client_request().expect("request");
            soon("a handshake", tokio_tungstenite::client_async(request, stream)).await.expect("handshake").0
        };
        let mut socket = connect().await;
        for word in ["one", "two"] {
            socket.send(Message::text(word)).await.expect("send");
            assert_eq!(
                soon("an echo", socket.next()).await.expect("open").expect("echo"),
                Message::text(word)
            );
        }
        // Another port takes the place of this one, which is cut.
        let web_port = web().await;
        let shown = scene.expose(Kind::Http, web_port, Access::Public, &[]).await;
        assert_eq!(shown.services.len(), 1);
        let ended = soon("the end", socket.next()).await;
        assert!(ended.is_none_or(|ended| ended.is_err()), "the socket was cut");
        let url = format!("http://{}:{}/stream", place.0, place.1.port());
        let mut answer = soon("an answer", browser(&place).get(&url).send()).await.expect("answer");
        assert!(soon("some of it", answer.chunk()).await.expect("chunk").is_some());
        scene.renter.unexpose(scene.cluster, Kind::Http, web_port).await.expect("unexpose");
        let broke = soon("the end", async {
            loop {
                match answer.chunk().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return false,
                    Err(_) => return true,
                }
            }
        });
        assert!(broke.await, "a cut answer does not look whole");
        scene.network.stop().await;
    });
}

#[test]
fn what_fails_fails_in_words_and_too_many_are_told_so() {
    run(async {
        let scene = Scene::start(|apps| apps.limits = few()).await;
        scene.expose(Kind::Http, free_port().await, Access::Public, &[]).await;
        let place = scene.place().await;
        let (browser, url) = (browser(&place), format!("http://{}:{}", place.0, place.1.port()));
        assert_eq!(asked(browser.get(&url)).await, no(502, "service_down"));
        let page = browser
            .get(&url)
            .header("accept", "text/html")
            .send()
            .await
            .expect("answer")
            .text()
            .await
            .expect("text");
        assert!(page.starts_with("<!doctype html>") && page.contains("the service is down"), "{page}");
        let upgrade = browser.get(&url).header("connection", "upgrade").header("upgrade", "h2c");
        assert_eq!(asked(upgrade).await, no(400, "wrong_upgrade"));
        // A service that closes without a word, and one that does not speak HTTP.
        for (word, code) in [("", "service_down"), ("220 mail.example.org ready\r\n", "service_garbled")] {
            scene.expose(Kind::Http, saying(word).await, Access::Public, &[]).await;
            assert_eq!(asked(browser.get(&url)).await, no(502, code), "{word:?}");
        }
        let port = web().await;
        scene.expose(Kind::Http, port, Access::Public, &[]).await;
        let stream = |path: &str| browser.get(format!("{url}{path}"));
        let going =
            [stream("/stream").send().await.expect("one"), stream("/stream").send().await.expect("two")];
        assert_eq!(asked(stream("/")).await, no(503, "too_many_connections"));
        let shown = scene.renter.exposed(scene.cluster).await.expect("exposed");
        assert_eq!(shown.services[0].live, 2);
        drop(going);
        soon("room again", async {
            while asked(stream("/")).await.0 != 200 {
                tokio::task::yield_now().await; // poll
            }
        })
        .await;
        scene.network.stop().await;
    });
}

#[test]
fn a_tcp_port_keeps_half_closes_waits_for_a_taken_port_and_is_closed_with_its_connections() {
    run(async {
        let taken = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let public = taken.local_addr().expect("address");
        let ports = Ports { first: public.port(), last: public.port() };
        let scene = Scene::start(|apps| apps.ports = Some(ports)).await;
        let port = counting_tcp().await;
        scene.expose(Kind::Tcp, port, Access::Public, &[]).await;
        let trouble =
            async || scene.renter.exposed(scene.cluster).await.expect("exposed").services[0].trouble.clone();
        let said = soon("the trouble", async {
            loop {
                if let Some(said) = trouble().await {
                    return said;
                }
                tokio::task::yield_now().await; // poll
            }
        });
        assert!(said.await.contains("in use"), "the port is somebody else's");
        drop(taken);
        soon("the port", async {
            while trouble().await.is_some() {
                tokio::task::yield_now().await; // poll
            }
        })
        .await;
        let mut stream = soon("a connection", TcpStream::connect(public)).await.expect("connect");
        stream.write_all(&vec![7; 100_000]).await.expect("write");
        stream.shutdown().await.expect("half close");
        let mut said = String::new();
        soon("the rest", stream.read_to_string(&mut said)).await.expect("read");
        assert_eq!(said, "100000 bytes", "each direction ends on its own");
        let mut open = TcpStream::connect(public).await.expect("connect");
        open.write_all(b"x").await.expect("write");
        let live = async || scene.renter.exposed(scene.cluster).await.expect("exposed").services[0].live;
        soon("the connection", async {
            while live().await != 1 {
                tokio::task::yield_now().await; // poll
            }
        })
        .await;
        scene.renter.unexpose(scene.cluster, Kind::Tcp, port).await.expect("unexpose");
        let broke = soon("the end", open.read_to_end(&mut Vec::new())).await;
        assert!(broke.is_err(), "a cut connection does not look whole");
        soon("the port to close", async {
            while TcpStream::connect(public).await.is_ok() {
                tokio::task::yield_now().await; // poll
            }
        })
        .await;
        scene.network.stop().await;
    });
}

#[test]
fn datagrams_go_there_and_back() {
    run(async {
        let public = free_port().await;
        let scene = Scene::start(|apps| apps.ports = Some(Ports { first: public, last: public })).await;
        let port = echoing_udp().await;
        scene.expose(Kind::Udp, port, Access::Public, &[]).await;
        for word in ["one", "two"] {
            let socket = UdpSocket::bind("127.0.0.1:0").await.expect("socket");
            socket.connect(("127.0.0.1", public)).await.expect("connect");
            let mut buffer = [0; 16];
            // The port opens a moment later, and datagrams may be lost.
            let echo = async {
                loop {
                    let _ = socket.send(word.as_bytes()).await;
                    let limit = Duration::from_millis(200);
                    if let Ok(Ok(len)) = tokio::time::timeout(limit, socket.recv(&mut buffer)).await {
                        return len;
                    }
                }
            };
            let len = soon("an echo", echo).await;
            assert_eq!(&buffer[..len], word.as_bytes());
        }
        scene.network.stop().await;
    });
}

#[test]
fn tls_by_a_given_certificate() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let made = wildcard(&cert, &key);
        let scene = Scene::start(|apps| {
            apps.domain = "apps.example.org".into();
            apps.tls = AppsTls::Files { cert, key };
        })
        .await;
        scene.expose(Kind::Http, web().await, Access::Owner, &[]).await;
        let (host, address) = scene.place().await;
        let secure = reqwest::Client::builder()
            .tls_certs_only([made])
            .resolve(&host, address)
            .redirect(Policy::none());
        let secure = secure.build().expect("client");
        let ticket = scene.renter.enter(scene.cluster).await.expect("ticket");
        assert!(ticket.url.expose().starts_with(&format!("https://{host}:")));
        let cookie = cookie_of(&secure, ticket.url.expose()).await;
        assert!(cookie.starts_with("__Host-ionet-apps="), "{cookie}");
        let url = format!("https://{host}:{}/", address.port());
        let said: Value = soon("an answer", secure.get(&url).header("cookie", cookie).send())
            .await
            .expect("answer")
            .json()
            .await
            .expect("json");
        assert!(said["headers"].to_string().contains(r#"["x-forwarded-proto","https"]"#), "{said}");
        let plain = reqwest::Client::new().get(format!("http://{address}/")).send();
        assert!(soon("no answer", plain).await.is_err(), "nothing is said in the clear");
        scene.network.stop().await;
    });
}

/// Writes a certificate of its own and its key into two files.
fn wildcard(cert: &Path, key: &Path) -> reqwest::Certificate {
    let made =
        rcgen::generate_simple_self_signed(vec!["*.apps.example.org".to_owned()]).expect("certificate");
    std::fs::write(cert, made.cert.pem()).expect("write");
    std::fs::write(key, made.signing_key.serialize_pem()).expect("write");
    reqwest::Certificate::from_pem(made.cert.pem().as_bytes()).expect("root")
}

#[test]
fn a_changed_certificate_is_read_again() {
    run(async {
        let dir = tempfile::tempdir().expect("dir");
        let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
        let first = wildcard(&cert, &key);
        let scene = Scene::start(|apps| {
            apps.domain = "apps.example.org".into();
            apps.tls = AppsTls::Files { cert: cert.clone(), key: key.clone() };
        })
        .await;
        scene.expose(Kind::Http, web().await, Access::Public, &[]).await;
        let (host, address) = scene.place().await;
        let url = format!("https://{host}:{}/", address.port());
        let trusts = async |root: &reqwest::Certificate| {
            let client = reqwest::Client::builder().tls_certs_only([root.clone()]).resolve(&host, address);
            soon("an answer", client.build().expect("client").get(&url).send()).await.is_ok()
        };
        assert!(trusts(&first).await);
        let second = wildcard(&cert, &key);
        soon("the new one", async {
            while !trusts(&second).await {
                tokio::time::sleep(Duration::from_millis(50)).await; // poll
            }
        })
        .await;
        assert!(!trusts(&first).await);
        scene.network.stop().await;
    });
}
