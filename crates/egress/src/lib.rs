//! The way out of a lease's box: a network stack in the supervisor's own process between the box's device and the host's
//! ordinary sockets, where every connection is checked, counted and bounded.
//!
//! Always holds: what the guard blocks is reached by no rule; a connection is dialled only after it was admitted, and by
//! address, so that names which change under it gain nothing; a rule that changes cuts what it forbids; memory is bounded
//! by [`Limits`] whatever the box sends. One thread; nothing here needs root. Not here: making the device
//! (`ionet-runtime`), who may set the rules, what traffic costs.

mod dns;
mod engine;
pub mod guard;
mod host;
mod io;
mod packet;
mod policy;
mod stack;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use ionet_domain::market::egress::Net;

pub use policy::Rules;

/// Where the box's programs ask for names. Reserved for uses between a host and its own tunnels (RFC 7335), and so
/// nobody's.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 1);
/// The device's MTU in bytes: far more than any wire's, for nothing of it goes onto one as it is.
pub const MTU_BYTES: u16 = 32 << 10;

/// The most that one box may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections, those being dialled included.
    pub connections: usize,
    /// Of those, connections being dialled.
    pub dialing: usize,
    /// UDP flows.
    pub flows: usize,
    /// Names being asked for.
    pub lookups: usize,
    /// How long a connection may take until the other end answers, in milliseconds.
    pub dial_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 1024, dialing: 128, flows: 512, lookups: 128, dial_ms: 30_000 }
    }
}

/// How a way out begins.
#[derive(Clone, Debug)]
pub struct Config {
    /// The box's own addresses; what comes from another one is dropped.
    pub sources: Vec<IpAddr>,
    /// What the lease says.
    pub rules: Rules,
    /// What the operator of this device allows although it is near.
    pub open: Vec<Net>,
    /// The file that names the host's name servers, `/etc/resolv.conf` as a rule.
    pub resolv_conf: PathBuf,
    /// The device's MTU in bytes.
    pub mtu: u16,
    /// The most that the box may use.
    pub limits: Limits,
    /// Where the TCP stack's sequence numbers begin.
    pub seed: u64,
}

/// What passed so far. Bytes are payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Out of the box.
    pub sent_bytes: u64,
    /// Into the box.
    pub received_bytes: u64,
    /// Connections and flows opened.
    pub opened: u64,
    /// Connections, flows and names that rules or guard turned away.
    pub refused: u64,
    /// What was dropped because a limit was reached.
    pub limited: u64,
    /// Connections and flows that are open now.
    pub open: u64,
}

/// What the thread is told.
#[derive(Debug, Default)]
struct Orders {
    rules: Option<Rules>,
    own: Option<Vec<IpAddr>>,
    stop: bool,
}

struct Shared {
    counters: io::Counters,
    orders: Mutex<Orders>,
    wake: OwnedFd,
}

impl Shared {
    fn order(&self, change: impl FnOnce(&mut Orders)) {
        change(&mut self.orders.lock().unwrap_or_else(PoisonError::into_inner));
        // It can only be full, and then the thread wakes up anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn take_orders(&self) -> Orders {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A box's way out. Dropping it closes every connection.
pub struct Egress {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Egress {
    /// Serves the device whose descriptor this is (whole IP packets, no header). Connections are dialled from the network
    /// namespace of the thread that calls this.
    pub fn start(config: Config, device: OwnedFd) -> std::io::Result<Self> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let wake = rustix::event::eventfd(0, flags)?;
        let shared = Arc::new(Shared { counters: io::Counters::default(), orders: Mutex::default(), wake });
        let mut engine = engine::Engine::new(config, device, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new()
            .name("egress".into())
            .stack_size(256 << 10)
            .spawn(move || engine.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// From now on these rules hold; what is open and no longer allowed is cut.
    pub fn set_rules(&self, rules: Rules) {
        self.shared.order(|orders| orders.rules = Some(rules));
    }

    /// Further addresses that this host is known by, such as the one behind which its network stands: never reached.
    pub fn set_own_addresses(&self, own: Vec<IpAddr>) {
        self.shared.order(|orders| orders.own = Some(own));
    }

    /// What passed so far.
    pub fn usage(&self) -> Usage {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        Usage {
            sent_bytes: read(&counters.sent_bytes),
            received_bytes: read(&counters.received_bytes),
            opened: read(&counters.opened),
            refused: read(&counters.refused),
            limited: read(&counters.limited),
            open: read(&counters.open),
        }
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.shared.order(|orders| orders.stop = true);
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has closed everything too.
            let _ = thread.join();
        }
    }
}
