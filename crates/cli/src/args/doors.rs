//! Words for the ways into a cluster's boxes: ports, shell, files, and who else may use them.

use std::path::PathBuf;

use clap::Args;
use ionet_domain::tunnel::{Service, Services};
use ionet_domain::{Address, OrderId};

use crate::units;

#[derive(Debug, Args)]
pub(crate) struct TunnelArgs {
    /// CLUSTER[.MEMBER]:PORT[/udp]; member 0, the head, unless said
    #[arg(required = true, value_name = "CLUSTER[.MEMBER]:PORT[/udp]", value_parser = parse_target)]
    pub(crate) targets: Vec<Target>,
    /// The port on this machine, and no other [default: the same, or a free one]
    #[arg(long, value_name = "PORT", conflicts_with = "stdio")]
    pub(crate) local: Option<u16>,
    /// One TCP connection at standard input and output
    #[arg(long)]
    pub(crate) stdio: bool,
}

/// A port of a member.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    pub(crate) cluster: OrderId,
    pub(crate) member: u32,
    pub(crate) service: Service,
    pub(crate) port: u16,
}

#[derive(Debug, Args)]
pub(crate) struct SshArgs {
    /// Which cluster
    pub(crate) cluster: OrderId,
    /// Which member; 0 is the head
    #[arg(default_value_t = 0)]
    pub(crate) member: u32,
    /// Print lines for ssh's own configuration instead
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Put them where ssh reads them, so that plain ssh, scp, rsync and editors know the cluster
    #[arg(long, conflicts_with = "print_config")]
    pub(crate) write_config: bool,
    /// Options and the command for ssh, after --
    #[arg(last = true, value_name = "SSH WORDS")]
    pub(crate) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// What: a path here, or CLUSTER[.MEMBER]:PATH
    #[arg(value_parser = parse_place)]
    pub(crate) source: Place,
    /// Where to, the other of the two; an existing folder, or a path that ends with /, takes it in
    #[arg(value_parser = parse_place)]
    pub(crate) target: Place,
}

/// A path here or in a box.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Here(PathBuf),
    Box { cluster: OrderId, member: u32, path: String },
}

#[derive(Debug, Args)]
pub(crate) struct ShareArgs {
    /// Which
    pub(crate) cluster: OrderId,
    /// With whom
    pub(crate) account: Address,
    /// tcp/PORT, udp/PORT, ssh, files and log, with commas between them; or all
    #[arg(long, value_name = "LIST")]
    pub(crate) services: Services,
    /// For how long
    #[arg(long = "for", default_value = "1d", value_name = "TIME", value_parser = units::parse_duration_ms)]
    pub(crate) for_ms: u64,
}

/// `CLUSTER[.MEMBER]`
fn parse_member(text: &str) -> Option<(OrderId, u32)> {
    match text.split_once('.') {
        Some((cluster, member)) => Some((cluster.parse().ok()?, member.parse().ok()?)),
        None => Some((text.parse().ok()?, 0)),
    }
}

fn parse_target(text: &str) -> Result<Target, String> {
    let wrong = || "write it as CLUSTER:PORT, CLUSTER.MEMBER:PORT or CLUSTER:PORT/udp".to_owned();
    let (member, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let (cluster, member) = parse_member(member).ok_or_else(wrong)?;
    let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let service = match protocol {
        "tcp" => Service::Tcp(port),
        "udp" => Service::Udp(port),
        _ => return Err(wrong()),
    };
    Ok(Target { cluster, member, service, port })
}

/// What begins like a cluster and a colon is in a box; `./` before it makes it a path here.
#[expect(clippy::unnecessary_wraps, reason = "what a value parser is")]
fn parse_place(text: &str) -> Result<Place, String> {
    let there = text.split_once(':').and_then(|(member, path)| Some((parse_member(member)?, path)));
    Ok(match there {
        Some(((cluster, member), path)) => Place::Box { cluster, member, path: path.to_owned() },
        None => Place::Here(text.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "clu_00000000000000000000000001";

    #[test]
    fn targets_are_read() {
        let read =
            |text: &str| parse_target(&text.replace("ID", ID)).map(|t| (t.member, t.service.to_string()));
        assert_eq!(read("ID:80").unwrap(), (0, "tcp/80".into()));
        assert_eq!(read("ID.3:53/udp").unwrap(), (3, "udp/53".into()));
        for wrong in ["ID", "ID:", "ID:0", "ID:70000", "ID:80/sctp", "ID.x:80", "clu_:80", ":80"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_place_is_in_a_box_only_with_a_cluster_before_its_colon() {
        let there = |text: &str| matches!(parse_place(&text.replace("ID", ID)).unwrap(), Place::Box { .. });
        assert!(there("ID:") && there("ID.1:a/b") && there("ID:/tmp/x:y"));
        assert!(!there("./ID:x") && !there("a:b") && !there("/tmp/ID") && !there("ID"));
    }
}
