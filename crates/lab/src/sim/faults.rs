//! What goes wrong by chance, and the end of it.

use ionet_chain::PayFault;
use ionet_journal::Keep;
use ionet_net::mem_link::Faults;

use super::world::{World, sound};
impl World {
    /// One fault; the next comes after a while.
    pub(super) fn fault(&mut self) {
        self.fault_due_ms = self.at_ms + self.random.between(2_000, 25_000);
        self.summary.faults += 1;
        let n = self.random.index(self.devices.len());
        match self.random.below(11) {
            0 => self.crash_server(),
            1 => self.crash_agent(n),
            2 => self.kill_a_supervisor(n),
            3 => self.lose_power(n),
            4 | 5 => self.cut(n),
            6 => self.make_net_bad(),
            7 => self.make_chain_bad(),
            8 => self.back_up_or_restore(),
            9 => self.break_a_box(n),
            _ => self.mend(n),
        }
    }

    fn kill_a_supervisor(&mut self, n: usize) {
        let leases: Vec<_> = self.devices[n].supervisors.keys().copied().collect();
        if let Some(lease) = self.random.one_of(&leases).copied() {
            self.trace.note(self.at_ms, || format!("FAULT: the supervisor of {lease} is killed"));
            self.check.box_died(lease, self.at_ms);
            self.devices[n].kill_supervisor(lease);
        }
    }

    /// The machine goes with everything on it and comes back.
    fn lose_power(&mut self, n: usize) {
        self.trace.note(self.at_ms, || format!("FAULT: machine {n} loses power"));
        self.crash_agent(n);
        let leases: Vec<_> = self.devices[n].supervisors.keys().copied().collect();
        for lease in leases {
            self.check.box_died(lease, self.at_ms);
            self.devices[n].kill_supervisor(lease);
        }
        self.devices[n].boot_ms = self.random.below(1 << 30);
    }

    /// Cuts one direction or both.
    fn cut(&mut self, n: usize) {
        let (device, server) = (self.devices[n].endpoint, self.server_endpoint);
        let directions = self.random.between(1, 3);
        self.trace.note(self.at_ms, || format!("FAULT: device {n} is cut off ({directions})"));
        self.cut[n] = true;
        self.net.cut(device, server, directions & 1 != 0);
        self.net.cut(server, device, directions & 2 != 0);
    }

    fn mend(&mut self, n: usize) {
        let (device, server) = (self.devices[n].endpoint, self.server_endpoint);
        self.trace.note(self.at_ms, || format!("device {n} is reached again, the network is sound"));
        if self.cut[n] {
            // What was sent into the cut is lost, and a session that lost something is over.
            self.net.disconnect(device, server);
        }
        self.cut[n] = false;
        self.net.cut(device, server, false);
        self.net.cut(server, device, false);
        if self.bad_net {
            self.bad_net = false;
            self.net.set_faults(sound());
            for device in &self.devices {
                self.net.disconnect(device.endpoint, server);
            }
        }
        self.poll_links();
    }

    fn make_net_bad(&mut self) {
        self.trace.note(self.at_ms, || "FAULT: the network loses, doubles and reorders".into());
        self.bad_net = true;
        self.net.set_faults(Faults {
            delay_max_ms: self.random.between(50, 4_000),
            loss_ppm: 100_000,
            duplicate_ppm: 100_000,
            reorder_ppm: 200_000,
            ..sound()
        });
    }

    fn make_chain_bad(&mut self) {
        let faults =
            [PayFault::Refuse, PayFault::TimeoutBefore, PayFault::TimeoutAfter, PayFault::TimeoutAfter];
        for _ in 0..self.random.between(1, 4) {
            let fault = self.random.one_of(&faults).copied().unwrap_or(PayFault::Refuse);
            self.trace.note(self.at_ms, || format!("FAULT: the chain will {fault:?}"));
            self.chain.plan(fault);
        }
    }

    fn back_up_or_restore(&mut self) {
        let taken = self.backup.take().filter(|_| self.plan.restores && !self.check.restored);
        let Some((disk, seq)) = taken else {
            if self.server.staged == 0 {
                self.backup = Some((self.server.disk.copy(), self.check.shadow.events));
            }
            return;
        };
        self.trace.note(self.at_ms, || format!("FAULT: the server is put back to a backup of record {seq}"));
        self.crash_server();
        self.server.disk = disk.restart(Keep::Everything);
        self.check.forget_after(seq);
    }

    fn break_a_box(&mut self, n: usize) {
        let leases: Vec<_> = self.devices[n].supervisors.keys().copied().collect();
        if let Some(lease) = self.random.one_of(&leases).copied() {
            self.trace.note(self.at_ms, || format!("FAULT: the engine in the box of {lease} dies"));
            let name = ionet_worker::assignment::box_name(lease);
            self.devices[n].host.fail(&name, "ray_node_died", "as planned");
        }
    }

    /// No more faults: everything is mended and only has to come to its end.
    pub(super) fn heal(&mut self) {
        self.trace.note(self.at_ms, || "no more faults".into());
        self.healed = true;
        self.bad_net = true;
        for n in 0..self.devices.len() {
            self.mend(n);
            let device = &mut self.devices[n];
            device.start_due_ms = device.start_due_ms.min(self.at_ms + 1_000);
        }
        self.server.start_due_ms = self.server.start_due_ms.min(self.at_ms + 1_000);
    }
}
