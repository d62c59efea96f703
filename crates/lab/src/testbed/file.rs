//! The file that describes a testbed.
//!
//! Always holds: what the file does not say has one default, written in [`EXAMPLE`]; a field that does not exist is
//! refused by name.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::line::Quality;
use crate::{LabError, Result};

/// A commented file: what `ionet-lab up --example` prints.
pub const EXAMPLE: &str = include_str!("../../testbeds/two-homes.toml");

/// The file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestbedFile {
    /// Names the testbed: several with different names can be up at once.
    pub name: String,
    /// Chance of loss and jitter.
    #[serde(default)]
    pub seed: u64,
    /// The machine of the server, on the open internet.
    #[serde(default)]
    pub server: Machine,
    /// Relays, on the open internet.
    #[serde(default)]
    pub relays: Vec<Machine>,
    /// The renter's machine, on the open internet.
    #[serde(default)]
    pub client: Machine,
    /// Networks of suppliers.
    #[serde(default)]
    pub sites: Vec<Site>,
    /// What addresses there are, on all machines.
    #[serde(default)]
    pub family: Family,
}

/// What addresses a testbed has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// IPv4 and nothing else.
    #[default]
    Ipv4,
    /// IPv6 and nothing else; routers do not translate.
    Ipv6,
}

/// A machine on the open internet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Its line to the internet.
    #[serde(default)]
    pub link: Link,
    /// Size of its own disk in memory, in MiB; 0 uses this machine's disk.
    #[serde(default)]
    pub disk_mib: u64,
}

/// A network of one supplier: a router and workers behind it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Its name, and the start of its workers' names.
    pub name: String,
    /// What its router does.
    #[serde(default)]
    pub nat: Nat,
    /// What the provider's router before it does, if there is one.
    #[serde(default)]
    pub carrier: Option<Nat>,
    /// The router's line to the internet.
    #[serde(default)]
    pub link: Link,
    /// How many workers.
    #[serde(default = "one")]
    pub workers: u32,
    /// CPU threads of each for hire, such as "2" or "0.5".
    #[serde(default = "two_cpus")]
    pub cpus: String,
    /// Memory of each for hire.
    #[serde(default = "memory_mib")]
    pub memory_mib: u64,
    /// Size of each worker's own disk in memory, in MiB; 0 uses this machine's disk.
    #[serde(default)]
    pub disk_mib: u64,
}

fn one() -> u32 {
    1
}

fn two_cpus() -> String {
    "2".into()
}

fn memory_mib() -> u64 {
    1024
}

/// What a router does to addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nat {
    /// No translation: workers have public addresses.
    #[default]
    None,
    /// One mapping a source port whoever is spoken to; only who was spoken to may answer. In IPv6 there is no mapping.
    Cone,
    /// A mapping of its own for each peer, on a random port.
    Symmetric,
    /// As cone, but everybody may send to a mapped port.
    FullCone,
    /// As cone for TCP; UDP gets nowhere.
    UdpBlocked,
}

/// A line to the internet. Up is away from the machine.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// One way.
    #[serde(default)]
    pub delay_ms: f64,
    /// Around the delay.
    #[serde(default)]
    pub jitter_ms: f64,
    /// Of packets, each way.
    #[serde(default)]
    pub loss_percent: f64,
    /// Towards the machine; 0 is without a limit.
    #[serde(default)]
    pub down_mbit: f64,
    /// Away from it; 0 is without a limit.
    #[serde(default)]
    pub up_mbit: f64,
    /// What may wait for its turn each way, in KiB; 0 is 256.
    #[serde(default)]
    pub queue_kib: u64,
    /// Whether jitter may change the order of packets.
    #[serde(default)]
    pub reorder: bool,
    /// The longest packet, from 1280 bytes; senders of longer ones are told. 0 is 1500.
    #[serde(default)]
    pub mtu: u32,
}

impl Link {
    /// Away from the machine, and towards it.
    pub fn qualities(&self) -> [Quality; 2] {
        [self.up_mbit, self.down_mbit].map(|mbit| self.quality(mbit))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be small and positive"
    )]
    fn quality(&self, mbit: f64) -> Quality {
        let usual = Quality::default();
        Quality {
            delay_us: (self.delay_ms * 1000.0) as u64,
            jitter_us: (self.jitter_ms * 1000.0) as u64,
            loss_ppm: (self.loss_percent * 10_000.0) as u64,
            rate_bits_per_s: (mbit * 1_000_000.0) as u64,
            queue_bytes: if self.queue_kib == 0 { usual.queue_bytes } else { self.queue_kib << 10 },
            reorder: self.reorder,
            ..usual
        }
    }

    fn check(&self, of: &str) -> Result<()> {
        let within = |what: &str, value: f64, most: f64| {
            let good = (0.0..=most).contains(&value);
            let error = || wrong(format!("{of}: {what} is {value}; it must be from 0 to {most}"));
            good.then_some(()).ok_or_else(error)
        };
        within("delay_ms", self.delay_ms, 10_000.0)?;
        within("jitter_ms", self.jitter_ms, 10_000.0)?;
        within("loss_percent", self.loss_percent, 100.0)?;
        within("down_mbit", self.down_mbit, 100_000.0)?;
        within("up_mbit", self.up_mbit, 100_000.0)?;
        if self.mtu != 0 && !(1280..=1500).contains(&self.mtu) {
            return Err(wrong(format!("{of}: mtu is {}; it must be from 1280 to 1500, or 0", self.mtu)));
        }
        if self.jitter_ms > self.delay_ms {
            return Err(wrong(format!("{of}: jitter_ms is more than delay_ms; no packet can be early")));
        }
        Ok(())
    }
}

fn wrong(what: String) -> LabError {
    LabError::Broken(what)
}

impl TestbedFile {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(LabError::io(format!("read {}", path.display())))?;
        Self::parse(&text).map_err(|error| wrong(format!("{}: {error}", path.display())))
    }

    /// The same from its text.
    pub fn parse(text: &str) -> Result<Self> {
        let file: Self = toml::from_str(text).map_err(|error| {
            let error = error.to_string();
            wrong(format!("{}\nhelp: 'ionet-lab up --example' prints a file with every field", error.trim()))
        })?;
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<()> {
        let plain = |name: &str| {
            let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            (1..=24).contains(&name.len()) && name.chars().all(good)
        };
        let mut names = BTreeSet::from(["server".to_owned(), "client".into(), "internet".into()]);
        for name in std::iter::once(&self.name).chain(self.sites.iter().map(|site| &site.name)) {
            if !plain(name) {
                return Err(wrong(format!("'{name}' is no name; use 1 to 24 small letters, digits and '-'")));
            }
        }
        for name in self.hosts().into_iter().filter(|name| name.contains('-')).chain(self.routers()) {
            if !names.insert(name.clone()) {
                return Err(wrong(format!("two machines would be called '{name}'; rename a site")));
            }
        }
        // An address is a byte, and so is the number of a line.
        if names.len() > 60 || self.sites.len() > 15 || self.sites.iter().any(|site| site.workers > 12) {
            return Err(wrong("at most 60 machines, 15 sites and 12 workers a site".into()));
        }
        self.server.link.check("server")?;
        self.client.link.check("client")?;
        self.relays.iter().try_for_each(|relay| relay.link.check("a relay"))?;
        self.sites.iter().try_for_each(|site| site.link.check(&site.name))?;
        self.sites.iter().try_for_each(|site| self.check_routers(site))
    }

    /// The names of all machines on which something of ours runs: server, client, `relay-N`, `SITE-N`.
    pub fn hosts(&self) -> Vec<String> {
        let relays = (1..=self.relays.len()).map(|n| format!("relay-{n}"));
        let workers = self.sites.iter().flat_map(Site::worker_names);
        ["server".to_owned(), "client".into()].into_iter().chain(relays).chain(workers).collect()
    }

    fn routers(&self) -> impl Iterator<Item = String> + '_ {
        let carriers = self.sites.iter().filter(|site| site.carrier.is_some()).map(Site::carrier_name);
        self.sites.iter().map(|site| site.name.clone()).chain(carriers)
    }

    fn check_routers(&self, site: &Site) -> Result<()> {
        let translates = |nat| matches!(nat, Nat::Symmetric | Nat::FullCone);
        if self.family == Family::Ipv6 && (translates(site.nat) || site.carrier.is_some()) {
            let name = &site.name;
            return Err(wrong(format!(
                "{name}: no router translates in IPv6; nat must be none, cone or udp_blocked, without a carrier"
            )));
        }
        if site.carrier == Some(Nat::None) || (site.carrier.is_some() && site.nat == Nat::None) {
            return Err(wrong(format!(
                "{}: behind a carrier both routers translate; name their kinds",
                site.name
            )));
        }
        Ok(())
    }
}

impl Site {
    /// The provider's router, where there is one.
    pub fn carrier_name(&self) -> String {
        format!("{}-isp", self.name)
    }

    /// `SITE-1` and so on.
    pub fn worker_names(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.workers).map(|n| format!("{}-{n}", self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_read_and_names_every_machine() {
        let file = TestbedFile::parse(EXAMPLE).unwrap();
        assert_eq!(file.hosts(), ["server", "client", "relay-1", "home-1", "office-1", "office-2"]);
        let [up, down] = file.sites[0].link.qualities();
        assert_eq!((up.rate_bits_per_s, down.rate_bits_per_s), (20_000_000, 100_000_000));
        assert_eq!((up.delay_us, up.jitter_us, up.loss_ppm), (15_000, 2_000, 1_000));
    }

    #[test]
    fn what_is_wrong_is_said_with_what_would_be_right() {
        let site = "name = 't'\n[[sites]]\nname = 'a'\n";
        for (text, said) in [
            ("", "name"),
            ("name = 't'\nspeed = 3", "unknown field `speed`"),
            ("name = 'T e'", "small letters"),
            (&format!("{site}nat = 'conical'"), "expected one of `none`, `cone`"),
            (&format!("{site}link = {{ delay = 3 }}"), "unknown field `delay`"),
            (&format!("{site}link = {{ loss_percent = 300 }}"), "from 0 to 100"),
            (&format!("{site}link = {{ jitter_ms = 3 }}"), "no packet can be early"),
            (&format!("{site}workers = 40"), "at most"),
            (&format!("{site}link = {{ mtu = 576 }}"), "from 1280"),
            (&format!("{site}carrier = 'cone'"), "both routers translate"),
            ("name = 't'\nfamily = 'ipv6'\n[[sites]]\nname = 'a'\nnat = 'symmetric'", "no router translates"),
            ("name = 't'\n[[sites]]\nname = 'server'", "would be called 'server'"),
            ("name = 't'\n[[relays]]\n[[sites]]\nname = 'relay'", "would be called 'relay-1'"),
        ] {
            let error = TestbedFile::parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
