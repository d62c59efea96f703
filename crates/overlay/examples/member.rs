//! One member of an overlay on a TUN that it makes itself, for benchmarks and tests between network namespaces:
//! `member CONFIG.json`, as root, inside the namespace. It runs until its input ends, and prints what it knows of its peers,
//! one line of JSON, whenever a line comes in.
//!
//! Members are introduced over a plain UDP port each, which trusts whoever writes to it: not for anything real.

use std::{
    error::Error,
    fs::File,
    io::BufRead,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    process::Command,
    sync::Arc,
};

use ionet_overlay::{
    Addresses, Config, Member, Overlay, PeerKey, PeerStats, Privacy, RelayAt,
    handshake::Identity,
    io::tun,
    privacy::{CoverLimits, CoverPlan},
};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    cluster: String,
    tun: String,
    #[serde(default = "mtu")]
    mtu: u16,
    listen: SocketAddr,
    me: Entry,
    members: Vec<Entry>,
    #[serde(default)]
    relays: Vec<Relay>,
    /// All packets of one size.
    #[serde(default)]
    padded: bool,
    /// The cover of a padded cluster: maybenot machines, or `steady`.
    #[serde(default)]
    machines: Vec<String>,
}

/// The key is made of a number: the same number is the same key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    number: u8,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    introducer: SocketAddr,
    #[serde(default)]
    eager: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Relay {
    number: u8,
    udp: SocketAddr,
    #[serde(default)]
    second: Option<SocketAddr>,
    #[serde(default)]
    tcp: Option<SocketAddr>,
}

fn mtu() -> u16 {
    1400
}

impl Entry {
    fn key(&self, cluster: &str) -> PeerKey {
        Identity::new(cluster, &[self.number; 32]).key()
    }

    fn addresses(&self) -> Addresses {
        Addresses { v4: self.v4, v6: self.v6 }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: member CONFIG.json")?;
    let file: Settings = serde_json::from_reader(File::open(path)?)?;
    let device = tun::create(&file.tun)?;
    set_up(&file)?;
    let config = config(&file)?;
    let introducer = Arc::new(UdpSocket::bind(file.me.introducer)?);
    let others: Vec<(PeerKey, SocketAddr)> =
        file.members.iter().map(|member| (member.key(&file.cluster), member.introducer)).collect();
    let (out, from, to) = (introducer.clone(), file.me.key(&file.cluster), others.clone());
    let introduce = move |peer: PeerKey, bytes: Vec<u8>| {
        if let Some((_, address)) = to.iter().find(|(key, _)| *key == peer) {
            let _ = out.send_to(&[&from.0[..], &bytes].concat(), address);
        }
    };
    let overlay = Arc::new(Overlay::start(&config, device, Box::new(introduce))?);
    let inward = overlay.clone();
    std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = introducer.recv(&mut buffer) {
            if let Some((key, bytes)) = buffer[..length].split_first_chunk() {
                inward.introduced(PeerKey(*key), bytes);
            }
        }
    });
    println!("listening on {}", overlay.local());
    for line in std::io::stdin().lock().lines() {
        let _ = line?;
        let peers: Vec<_> = overlay.stats().iter().map(shown).collect();
        let dropped: Vec<_> = overlay.dropped().iter().map(|(why, n)| (why.code(), *n)).collect();
        println!("{}", serde_json::json!({ "peers": peers, "dropped": dropped }));
    }
    Ok(())
}

fn config(file: &Settings) -> Result<Config, Box<dyn Error>> {
    let member = |entry: &Entry| Member {
        key: entry.key(&file.cluster),
        addresses: entry.addresses(),
        eager: entry.eager,
    };
    let relay = |relay: &Relay| RelayAt {
        id: Identity::new("relay", &[relay.number; 32]).key().0,
        udp: relay.udp,
        second: relay.second,
        tcp: relay.tcp,
    };
    Ok(Config {
        cluster: file.cluster.clone(),
        key_seed: [file.me.number; 32],
        me: file.me.addresses(),
        members: file.members.iter().map(member).collect(),
        relays: file.relays.iter().map(relay).collect(),
        listen: file.listen,
        mtu: file.mtu,
        privacy: Privacy { padded: file.padded, ..Privacy::default() },
        cover: CoverPlan::new(&file.machines, CoverLimits::default())?,
    })
}

fn set_up(file: &Settings) -> Result<(), Box<dyn Error>> {
    let (tun, mtu) = (&file.tun, file.mtu.to_string());
    let (v4, v6) = (format!("{}/16", file.me.v4), format!("{}/64", file.me.v6));
    for words in [
        vec!["addr", "add", &v4, "dev", tun],
        vec!["-6", "addr", "add", &v6, "dev", tun, "nodad"],
        vec!["link", "set", tun, "mtu", &mtu, "up"],
    ] {
        if !Command::new("ip").args(&words).status()?.success() {
            return Err(format!("ip {} failed", words.join(" ")).into());
        }
    }
    Ok(())
}

fn shown(peer: &PeerStats) -> serde_json::Value {
    let ways: Vec<_> = peer.ways.iter().map(|way| format!("{way:?}")).collect();
    let dropped: Vec<_> = peer.dropped.iter().map(|(why, n)| (why.code(), *n)).collect();
    serde_json::json!({
        "v4": peer.addresses.v4, "session": peer.has_session, "handshakes": peer.handshakes, "ways": ways,
        "sent": peer.sent, "received": peer.received, "cover": peer.cover, "dropped": dropped,
    })
}
