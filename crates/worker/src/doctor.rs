//! Looks for what would keep this machine from working, each with what mends it.
//!
//! Always holds: looking changes nothing that lasts, and may be done beside a running agent. What boxes need is looked at
//! by `ionet-runtime`; here come the clock, ports, the data directory and the way to the server.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ionet_api::Client;
use ionet_net::link::connect_link;
use ionet_net::{EndpointKey, NetError, Node, NodeConfig};
use ionet_runtime::doctor::{self, Check, Status};
use tokio::time::timeout;

use crate::config::Network;
use crate::error::{During as _, Result};
use crate::files::make_dir;

/// A clock that is off by more than this makes signatures look expired.
const CLOCK_TOLERANCE_S: u64 = 30;
const DIAL_WAIT: Duration = Duration::from_secs(10);

/// Looks at everything; `url` is the server's REST address, if one is known.
pub async fn checks(data_dir: &Path, url: Option<&str>) -> Vec<Check> {
    let own = data_dir.to_path_buf();
    // The boxes' checks start programs.
    let looked = tokio::task::spawn_blocking(move || doctor::checks(&own)).await;
    let mut found = looked.unwrap_or_default();
    found.extend([data_dir_is_writable(data_dir), udp_ports(), ssh()]);
    let Some(url) = url else {
        found.push(check(
            "server",
            Status::Warn,
            "no server is known",
            "ionet worker start --token-file FILE",
        ));
        return found;
    };
    match Client::new(url) {
        Ok(client) => found.extend(server_checks(&client).await),
        Err(error) => {
            found.push(check("server", Status::Fail, error.to_string(), "check the server's address"));
        }
    }
    found
}

fn check(name: &'static str, status: Status, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check { name, status, found: found.into(), remedy: remedy.into() }
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    check(name, Status::Ok, found, "")
}

fn data_dir_is_writable(data_dir: &Path) -> Check {
    let probe = data_dir.join(format!("doctor-{}.tmp", std::process::id()));
    let new = !data_dir.exists();
    let written = make_dir(data_dir).and_then(|()| fs::write(&probe, "x").during("write there"));
    let _ = fs::remove_file(&probe);
    if new {
        // Only where it is empty, so only what was made here.
        let _ = fs::remove_dir(data_dir);
    }
    match written {
        Ok(()) => ok("data_dir", format!("{} can be written", data_dir.display())),
        Err(error) => check(
            "data_dir",
            Status::Fail,
            format!("{}: {}", data_dir.display(), error.full_message()),
            "start with --data-dir on a folder of your own, or: sudo chown -R $USER that folder",
        ),
    }
}

fn udp_ports() -> Check {
    match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)) {
        Ok(_) => ok("udp_ports", "UDP ports can be bound"),
        Err(error) => check(
            "udp_ports",
            Status::Fail,
            format!("no UDP port can be bound: {error}"),
            "raise the limit of open files (ulimit -n 65536) or allow UDP in this container",
        ),
    }
}

/// Without it everything runs but a shell in the box.
fn ssh() -> Check {
    match ionet_runtime::ssh::available() {
        Ok(()) => ok("ssh", "boxes can serve SSH"),
        Err(ionet_runtime::Error::Missing { what, remedy, .. }) => check("ssh", Status::Warn, what, remedy),
        Err(error) => check("ssh", Status::Warn, error.full_message(), ""),
    }
}

async fn server_checks(client: &Client) -> Vec<Check> {
    let info = match client.network().await {
        Ok(info) => info,
        Err(error) => {
            let remedy = format!("start the server, or open the way to {} in the firewall", client.base());
            return vec![check("server", Status::Fail, error.to_string(), remedy)];
        }
    };
    let server = ok("server", format!("{} answers for network {}", client.base(), info.name));
    let date = client.server_date().await.ok().flatten();
    vec![server, clock(date.as_deref(), now_s()), link(Network::of(&info)).await]
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn clock(server_date: Option<&str>, now_s: u64) -> Check {
    const REMEDY: &str = "sudo timedatectl set-ntp true";
    let Some(server_s) = server_date.and_then(parse_http_date) else {
        return check("clock", Status::Warn, "the server does not say what time it is", REMEDY);
    };
    let off_s = server_s.abs_diff(now_s);
    let side = if server_s > now_s { "behind" } else { "ahead of" };
    if off_s <= CLOCK_TOLERANCE_S {
        ok("clock", format!("within {off_s} s of the server's"))
    } else {
        check("clock", Status::Fail, format!("{off_s} s {side} the server's"), REMEDY)
    }
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn parse_http_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let mut words = text.split([' ', ':']).skip(1);
    let number = |word: Option<&str>| word?.parse::<u64>().ok();
    let day = number(words.next())?;
    let month = MONTHS.find(words.next()?)? as u64 / 3;
    let year = number(words.next())?;
    let (hour, minute, second) = (number(words.next())?, number(words.next())?, number(words.next())?);
    // Days of the years from March, so that the leap day comes last.
    let (years, from_march) = if month < 2 { (year.checked_sub(1)?, month + 10) } else { (year, month - 2) };
    let days = years * 365 + years / 4 - years / 100 + years / 400 + (from_march * 153 + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// Dials the server's endpoint under a key of the moment: that it is not admitted shows that it is reached.
async fn link(network: Result<Network>) -> Check {
    let name = "link";
    let remedy = "allow outgoing UDP, or outgoing TCP to the network's relay, in the firewall";
    match dial(network).await {
        Ok(()) => ok(name, "the server's endpoint is reached"),
        Err(reason) => check(name, Status::Fail, reason, remedy),
    }
}

async fn dial(network: Result<Network>) -> std::result::Result<(), String> {
    let network = network.map_err(|error| error.to_string())?;
    let key = EndpointKey::generate().map_err(|error| error.to_string())?;
    let config = NodeConfig { relays: network.relays, ..NodeConfig::default() };
    let node = Node::bind(&key, config).await.map_err(|error| error.to_string())?;
    let dialled = timeout(DIAL_WAIT, connect_link(&node, &network.server_addr)).await;
    node.close().await;
    match dialled {
        Ok(Ok(_) | Err(NetError::NotAdmitted)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the server's endpoint does not answer".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_and_clocks_compared() {
        for (text, expected) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Thu, 29 Feb 2024 23:59:59 GMT", Some(1_709_251_199)),
            ("Fri, 01 Mar 2024 00:00:00 GMT", Some(1_709_251_200)),
            ("yesterday", None),
        ] {
            assert_eq!(parse_http_date(text), expected, "{text}");
        }
        let date = Some("Thu, 01 Jan 1970 00:02:00 GMT");
        assert_eq!(clock(date, 110).status, Status::Ok);
        assert_eq!(
            (clock(date, 20).status, clock(date, 20).found.as_str()),
            (Status::Fail, "100 s behind the server's")
        );
        assert_eq!(clock(None, 0).status, Status::Warn);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_told_and_one_that_can_leaves_no_trace() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path().join("data");
        assert_eq!(data_dir_is_writable(&data_dir).status, Status::Ok);
        assert!(!data_dir.exists());
        let bad = data_dir_is_writable(Path::new("/proc/none/data"));
        assert_eq!(bad.status, Status::Fail);
        assert!(!bad.remedy.is_empty() && bad.found.contains("/proc/none/data"), "{bad:?}");
    }
}
