//! Certificates from an authority: the real client against a small real authority, the proof fetched from the gateway.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use ionet_domain::order::expose::{Access, Kind, host_label};
use ionet_server::{AcmeConfig, AppsConfig, AppsTls, Server, ServerConfig};
use reqwest::redirect::Policy;
use reqwest::tls::TlsInfo;

use crate::acme_kit::Authority;
use crate::apps_kit::{Scene, free_port, web};
use crate::http_kit::{Network, run, soon};

const DOMAIN: &str = "apps.example.org";

/// Services under a name of ours, with certificates from an authority that finds proofs at `http_port`.
fn apps(directory: String, authority: &Authority, http_port: u16) -> AppsConfig {
    AppsConfig {
        domain: DOMAIN.into(),
        tls: AppsTls::Acme(AcmeConfig {
            directory,
            contact: Some("mailto:ops@example.org".into()),
            root: Some(authority.root()),
        }),
        http_listen: Some(SocketAddr::from(([127, 0, 0, 1], http_port))),
        ..AppsConfig::local()
    }
}

/// A visit by somebody who trusts this authority alone: the status and the host's certificate.
async fn visit(authority: &Authority, (host, address): &(String, SocketAddr)) -> Option<(u16, Vec<u8>)> {
    let client = reqwest::Client::builder().tls_certs_only([authority.trusted()]).tls_info(true).no_proxy();
    let client = client.resolve(host, *address).build().expect("client");
    let answer = soon("an answer", client.get(format!("https://{host}:{}/", address.port())).send()).await;
    let answer = answer.ok()?;
    let tls = answer.extensions().get::<TlsInfo>().expect("tls");
    Some((answer.status().as_u16(), tls.peer_certificate().expect("certificate").to_vec()))
}

#[test]
fn a_first_visit_gets_a_certificate_that_outlives_the_server_and_other_names_get_none() {
    run(async {
        let http_port = free_port().await;
        let authority = Authority::start(http_port).await;
        let config = apps(authority.directory(), &authority, http_port);
        let scene = Scene::start(|apps| *apps = config.clone()).await;
        let ours = format!("{}.{DOMAIN}", host_label(scene.cluster));
        let port = web().await;
        scene.expose(Kind::Http, port, Access::Public, &[]).await;
        let place = scene.place().await;
        assert_eq!(place.0, ours);
        scene.renter.unexpose(scene.cluster, Kind::Http, port).await.expect("unexpose");
        let elsewhere = ours.replace(DOMAIN, "apps.example.net");
        let nobody = format!("00000000000000000000000000.{DOMAIN}");
        for name in [ours, elsewhere, nobody, format!("www.{DOMAIN}"), DOMAIN.to_owned()] {
            assert!(visit(&authority, &(name.clone(), place.1)).await.is_none(), "{name}");
        }
        assert_eq!((authority.accounts(), authority.asked().len()), (0, 0), "nothing is asked for those");

        scene.expose(Kind::Http, port, Access::Public, &[]).await;
        let (one, two, three) =
            tokio::join!(visit(&authority, &place), visit(&authority, &place), visit(&authority, &place));
        let (status, certificate) = one.expect("the first visitor waits and is let in");
        assert_eq!(status, 200);
        for other in [two, three, visit(&authority, &place).await] {
            assert!(other.expect("and so are others").1 == certificate, "one certificate for all");
        }
        assert_eq!(authority.asked(), std::slice::from_ref(&place.0), "by one order");
        let (dir, plain) = (scene.network.dir.path().join("apps"), format!("http://127.0.0.1:{http_port}"));
        let modes = std::fs::read_dir(&dir).expect("dir").map(|file| {
            let file = file.expect("file");
            let mode = file.metadata().expect("metadata").permissions().mode() & 0o777;
            (file.file_name().into_string().expect("name"), mode)
        });
        let private = [("account.json".to_owned(), 0o600), (format!("{}.pem", place.0), 0o600)];
        assert_eq!(modes.collect::<BTreeMap<_, _>>(), private.into());
        let client = reqwest::Client::builder().redirect(Policy::none()).no_proxy().build().expect("client");
        let proof = format!("{plain}/.well-known/acme-challenge/{}", authority.tokens()[0]);
        let gone = client.get(proof).header("host", &place.0).send().await.expect("answer");
        assert_eq!(gone.status(), 308, "the proof is gone with its order, and visitors are sent to TLS");
        assert!(
            gone.headers()["location"].to_str().expect("text").starts_with(&format!("https://{}", place.0))
        );

        let Network { server, dir } = scene.network;
        soon("the end of the server", server.stop()).await.expect("stop");
        let mut again = ServerConfig::local(dir.path().to_owned());
        again.apps = Some(AppsConfig { listen: place.1, ..config });
        let server = Server::start(again).await.expect("server");
        let (_, kept) = visit(&authority, &place).await.expect("an answer");
        assert!(kept == certificate && authority.asked().len() == 1, "kept in a file");
        soon("the end of the server", server.stop()).await.expect("stop");
    });
}

#[test]
fn a_certificate_is_renewed_before_it_is_over_and_kept_while_nothing_is_shown() {
    run(async {
        let http_port = free_port().await;
        let authority = Authority::start(http_port).await;
        authority.nearly_over();
        let scene = Scene::start(|it| *it = apps(authority.directory(), &authority, http_port)).await;
        let port = web().await;
        scene.expose(Kind::Http, port, Access::Public, &[]).await;
        let place = scene.place().await;
        let first = visit(&authority, &place).await.expect("in").1;
        let second = soon("another certificate", async {
            loop {
                let now = visit(&authority, &place).await.expect("never shut out meanwhile").1;
                if now != first {
                    return now;
                }
                tokio::time::sleep(Duration::from_millis(50)).await; // poll
            }
        })
        .await;
        scene.renter.unexpose(scene.cluster, Kind::Http, port).await.expect("unexpose");
        assert!(visit(&authority, &place).await.is_none());
        scene.expose(Kind::Http, port, Access::Public, &[]).await;
        assert!(visit(&authority, &place).await.expect("in").1 == second);
        assert_eq!((authority.accounts(), authority.asked().len()), (1, 2));
        scene.network.stop().await;
    });
}

/// What an order fails of, and the words that the renter reads.
#[derive(Debug, Clone, Copy)]
enum Failure {
    Refused,
    NoProof,
    Down,
    WrongRoot,
}

#[test]
fn an_order_that_fails_is_said_and_not_begun_again_at_once() {
    run(async {
        for failure in [Failure::Refused, Failure::NoProof, Failure::Down, Failure::WrongRoot] {
            fails(failure).await;
        }
    });
}

async fn fails(failure: Failure) {
    let http_port = free_port().await;
    let proofs = if matches!(failure, Failure::NoProof) { free_port().await } else { http_port };
    let (authority, other) = (Authority::start(proofs).await, Authority::start(proofs).await);
    let down = format!("https://127.0.0.1:{}/directory", free_port().await);
    let (config, words, orders) = match failure {
        Failure::Refused => {
            authority.refuse();
            (apps(authority.directory(), &authority, http_port), "rejectedIdentifier", 1)
        }
        Failure::NoProof => {
            (apps(authority.directory(), &authority, http_port), "did not find the proof: API", 1)
        }
        Failure::Down => (apps(down, &authority, http_port), "Connection refused", 0),
        Failure::WrongRoot => (apps(authority.directory(), &other, http_port), "certificate", 0),
    };
    let scene = Scene::start(|apps| *apps = config).await;
    scene.expose(Kind::Http, web().await, Access::Public, &[]).await;
    let place = scene.place().await;
    let trouble =
        async || scene.renter.exposed(scene.cluster).await.expect("exposed").services[0].trouble.clone();
    assert_eq!(trouble().await, None, "nobody came yet");
    for _ in 0..4 {
        assert!(visit(&authority, &place).await.is_none(), "{failure:?}");
    }
    let said = trouble().await.expect("the renter is told");
    assert!(said.contains(&place.0) && said.contains(words) && said.contains("tried again in"), "{said}");
    assert_eq!(authority.asked().len(), orders, "{failure:?}: one order, not one for each visit");
    scene.network.stop().await;
}
