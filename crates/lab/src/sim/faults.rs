//! What goes wrong by chance, and the end of it. Every fault has a number and chance of its own, so that one can be
//! left out and the others stay as they were.

use ionet_chain::PayFault;
use ionet_journal::{Disk, Keep};
use ionet_net::mem_link::Faults;

use super::plan::FaultKind;
use super::world::{Part, World, sound};
use crate::random::Random;

/// A fault that was injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injected {
    /// Its number.
    pub n: u64,
    /// What it was.
    pub kind: FaultKind,
    /// When, in virtual milliseconds.
    pub at_ms: u64,
}

/// Kinds that come from time to time; the others come with acts, or with people.
const TIMED: &[FaultKind] = &[
    FaultKind::ServerCrash,
    FaultKind::AgentCrash,
    FaultKind::SupervisorKill,
    FaultKind::MachinePower,
    FaultKind::Cut,
    FaultKind::Cut,
    FaultKind::BadNet,
    FaultKind::BadChain,
    FaultKind::BoxBreaks,
    FaultKind::BoxRefused,
    FaultKind::DiskFull,
    FaultKind::DiskCorrupt,
    FaultKind::SlowDisk,
    FaultKind::ClockJump,
    FaultKind::WorkerClock,
    FaultKind::MachineSleeps,
    FaultKind::Restore,
    FaultKind::DeviceLies,
];
/// The clock is never further off than this.
const CLOCK_OFF_MS: u64 = 5 * 60_000;
const DAY_MS: u64 = 24 * 60 * 60_000;

impl World {
    /// Whether a fault strikes now, with this chance in a million; if so, chance for what it does.
    pub(super) fn strikes(&mut self, kind: FaultKind, ppm: u64) -> Option<Random> {
        if self.healed || !self.plan.may(kind) || !self.fault_random.chance(ppm) {
            return None;
        }
        self.number_fault(kind)
    }

    fn number_fault(&mut self, kind: FaultKind) -> Option<Random> {
        let n = self.struck;
        self.struck += 1;
        if self.plan.only_faults.as_ref().is_some_and(|only| !only.contains(&n)) {
            return None;
        }
        self.injected.push(Injected { n, kind, at_ms: self.at_ms });
        self.trace.note(self.at_ms, || format!("FAULT {n}: {}", kind.name()));
        Some(Random::new(self.plan.seed ^ (n << 24) ^ 0x6661_756c))
    }

    /// One fault, or the end of some; the next comes after a while.
    pub(super) fn fault(&mut self) {
        let (least_ms, most_ms) = self.plan.fault_gap_ms;
        self.fault_due_ms = self.at_ms + self.fault_random.between(least_ms, most_ms);
        let n = self.fault_random.index(self.devices.len());
        if self.fault_random.chance(250_000) {
            return self.mend(n);
        }
        let kinds: Vec<_> = TIMED.iter().copied().filter(|kind| self.plan.may(*kind)).collect();
        let Some(kind) = self.fault_random.one_of(&kinds).copied() else { return self.mend(n) };
        let Some(random) = self.number_fault(kind) else { return };
        self.inject(kind, n, random);
        self.touch(Part::Device(n));
        self.touch(Part::Server);
    }

    fn inject(&mut self, kind: FaultKind, n: usize, mut random: Random) {
        let at_ms = self.at_ms;
        match kind {
            FaultKind::ServerCrash => self.crash_server(),
            FaultKind::AgentCrash => self.crash_agent(n),
            FaultKind::SupervisorKill => self.kill_a_supervisor(n, &mut random),
            FaultKind::MachinePower => self.lose_power(n, &mut random),
            FaultKind::Cut => self.cut(n, &mut random),
            FaultKind::BadNet => self.make_net_bad(&mut random),
            FaultKind::BadChain => self.make_chain_bad(&mut random),
            FaultKind::BoxBreaks => self.break_a_box(n, &mut random),
            FaultKind::BoxRefused => self.devices[n].refuses_until_ms = at_ms + random.between(1_000, 60_000),
            FaultKind::DiskFull => self.fill_the_disk(&mut random),
            FaultKind::DiskCorrupt => self.corrupt_the_disk(&mut random),
            FaultKind::SlowDisk => self.slow_until_ms = at_ms + random.between(2_000, 40_000),
            FaultKind::ClockJump => self.set_clock(random.between(0, 2 * CLOCK_OFF_MS)),
            FaultKind::WorkerClock => self.set_worker_clock(n, &mut random),
            FaultKind::MachineSleeps => self.put_to_sleep(n, &mut random),
            FaultKind::Restore => self.back_up_or_restore(&mut random),
            FaultKind::DeviceLies => self.devices[n].lies = true,
            _ => {}
        }
    }

    /// Sets the server's wall clock; `CLOCK_OFF_MS` is right.
    fn set_clock(&mut self, off_ms: u64) {
        let off_ms = i64::try_from(off_ms).unwrap_or(0) - i64::try_from(CLOCK_OFF_MS).unwrap_or(0);
        self.clock_off_ms = off_ms;
        self.clock_span_ms = 2 * CLOCK_OFF_MS;
    }

    /// Sets a machine's wall clock: a little off, a day, or right again. Its monotonic clock goes on as it was.
    fn set_worker_clock(&mut self, n: usize, random: &mut Random) {
        let most_ms = [0, 60_000, CLOCK_OFF_MS, DAY_MS][random.index(4)];
        let off_ms = i64::try_from(random.between(0, 2 * most_ms)).unwrap_or(0);
        self.devices[n].wall_off_ms = off_ms - i64::try_from(most_ms).unwrap_or(0);
    }

    /// Nothing on the machine goes on until it wakes; it is cut off until then and perhaps for longer.
    fn put_to_sleep(&mut self, n: usize, random: &mut Random) {
        let wakes_ms = self.at_ms + random.between(1_000, 100_000);
        self.trace.note(self.at_ms, || format!("device {n} sleeps"));
        self.devices[n].sleep(self.at_ms, wakes_ms);
        self.cut_directions(n, 3);
    }

    fn kill_a_supervisor(&mut self, n: usize, random: &mut Random) {
        let leases: Vec<_> = self.devices[n].supervisors.keys().copied().collect();
        if let Some(lease) = random.one_of(&leases).copied() {
            self.trace.note(self.at_ms, || format!("the supervisor of {lease} is killed"));
            self.devices[n].kill_supervisor(lease);
        }
    }

    /// The machine goes with everything on it and comes back.
    fn lose_power(&mut self, n: usize, random: &mut Random) {
        self.devices[n].wake(self.at_ms);
        self.crash_agent(n);
        let leases: Vec<_> = self.devices[n].supervisors.keys().copied().collect();
        for lease in leases {
            self.devices[n].kill_supervisor(lease);
        }
        self.devices[n].boot_ms = random.below(1 << 30);
    }

    /// Cuts one direction or both.
    fn cut(&mut self, n: usize, random: &mut Random) {
        self.cut_directions(n, random.between(1, 3));
    }

    fn cut_directions(&mut self, n: usize, directions: u64) {
        let (device, server) = (self.devices[n].endpoint, self.server_endpoint);
        self.trace.note(self.at_ms, || format!("device {n} is cut off ({directions})"));
        self.devices[n].cut = true;
        self.net.cut(device, server, directions & 1 != 0);
        self.net.cut(server, device, directions & 2 != 0);
    }

    fn mend(&mut self, n: usize) {
        let server = self.server_endpoint;
        self.trace.note(self.at_ms, || format!("device {n} is reached again, the network is sound"));
        for (at, device) in
            self.devices.iter_mut().enumerate().filter(|(at, device)| device.cut && (*at == n || self.healed))
        {
            // What was sent into the cut is lost, and a session that lost something is over.
            self.net.disconnect(device.endpoint, server);
            device.cut = false;
            self.net.cut(device.endpoint, server, false);
            self.net.cut(server, device.endpoint, false);
            self.turns.touch(2 + at);
        }
        if self.bad_net {
            self.bad_net = false;
            self.net.set_faults(sound());
            for device in &self.devices {
                self.net.disconnect(device.endpoint, server);
            }
        }
        self.poll_links();
    }

    fn make_net_bad(&mut self, random: &mut Random) {
        self.bad_net = true;
        self.net.set_faults(Faults {
            delay_max_ms: random.between(50, 4_000),
            loss_ppm: 100_000,
            duplicate_ppm: 100_000,
            reorder_ppm: 200_000,
            ..sound()
        });
    }

    fn make_chain_bad(&mut self, random: &mut Random) {
        let faults =
            [PayFault::Refuse, PayFault::TimeoutBefore, PayFault::TimeoutAfter, PayFault::TimeoutAfter];
        for _ in 0..random.between(1, 4) {
            let fault = random.one_of(&faults).copied().unwrap_or(PayFault::Refuse);
            self.trace.note(self.at_ms, || format!("the chain will {fault:?}"));
            self.chain.plan(fault);
        }
    }

    fn fill_the_disk(&mut self, random: &mut Random) {
        let room = random.below(4_000);
        self.server.disk.mem.set_capacity(Some(self.server.disk.used_bytes() + room));
        self.full_until_ms = Some(self.at_ms + random.between(2_000, 30_000));
    }

    /// A byte changes while the server is down; what the disk was before is known elsewhere.
    fn corrupt_the_disk(&mut self, random: &mut Random) {
        self.server.stop();
        self.server.disk = self.server.disk.restart(Keep::Everything);
        self.crash_server();
        let names = self.server.disk.list().unwrap_or_default();
        let Some(name) = random.one_of(&names).cloned() else { return };
        let bytes = self.server.disk.size(&name).unwrap_or_default();
        let (offset, flip) = (random.below(bytes), u8::try_from(random.between(1, 255)).unwrap_or(1));
        self.trace.note(self.at_ms, || format!("byte {offset} of {name} changes"));
        let before = self.server.disk.copy();
        self.mirror.get_or_insert(before);
        self.server.disk.mem.corrupt(&name, offset, flip);
    }

    /// Makes a backup, or uses the one that there is; it may be used again.
    fn back_up_or_restore(&mut self, random: &mut Random) {
        let Some((disk, seq)) = self.backup.take() else {
            if self.server.staged == 0 && self.mirror.is_none() {
                self.backup = Some((self.server.disk.copy(), self.check.shadow.events));
            }
            return;
        };
        self.trace.note(self.at_ms, || format!("the server is put back to a backup of record {seq}"));
        self.crash_server();
        self.mirror = None;
        self.server.disk = disk.copy();
        self.check.put_back(seq);
        if random.chance(400_000) {
            self.backup = Some((disk, seq));
        }
    }

    fn break_a_box(&mut self, n: usize, random: &mut Random) {
        let leases: Vec<_> = self.devices[n].supervisors.keys().copied().collect();
        if let Some(lease) = random.one_of(&leases).copied() {
            let name = ionet_worker::assignment::box_name(lease);
            if random.chance(500_000) {
                self.devices[n].host.fail(&name, "ray_node_died", "as planned");
            } else {
                self.devices[n].host.fail(&name, "box_failed", "as planned");
            }
        }
    }

    /// No more faults: everything is mended and only has to come to its end.
    pub(super) fn heal(&mut self) {
        self.trace.note(self.at_ms, || "no more faults".into());
        self.healed = true;
        self.bad_net = true;
        self.mend(0);
        for device in &mut self.devices {
            device.start_due_ms = device.start_due_ms.min(self.at_ms + 1_000);
            device.refuses_until_ms = 0;
            device.wall_off_ms = 0;
            device.wake(self.at_ms);
        }
        self.clock_off_ms = 0;
        self.slow_until_ms = self.slow_until_ms.min(self.at_ms);
        self.stalled_until_ms = self.stalled_until_ms.min(self.at_ms);
        self.full_until_ms = None;
        self.server.disk.mem.set_capacity(None);
        self.server.start_due_ms = self.server.start_due_ms.min(self.at_ms + 1_000);
        self.touch_all();
    }
}
