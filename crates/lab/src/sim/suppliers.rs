//! Suppliers: they enrol, change prices, pause, drain, schedule, rebind, archive, and take machines away.

use ionet_domain::command::CommandBody;
use ionet_domain::device::{DeviceChange, DeviceStage, OwnerRules, Window};
use ionet_domain::market::{Denials, WorkKind};
use ionet_domain::money::Rate;
use ionet_domain::{Actor, Command, DeviceId};
use ionet_server::Input;

use super::machine::endpoint;
use super::plan::FaultKind;
use super::world::{Part, World, supplier};
use crate::random::Random;

/// The owner of one machine.
#[derive(Debug)]
pub(super) struct Supplier {
    pub(super) due_ms: u64,
    random: Random,
    /// Drains the machine to archive it.
    leaves: bool,
    /// Keys that the machine has had.
    rebound: u8,
}

impl Supplier {
    pub(super) fn new(n: usize, seed: u64) -> Self {
        let random = Random::new(seed ^ 0x7375_7070 ^ ((n as u64) << 32));
        Self { due_ms: 0, random, leaves: false, rebound: 0 }
    }
}

impl World {
    pub(super) fn supplier_act(&mut self, n: usize) {
        let think_ms = self.plan.load.think_ms.1;
        let me = &mut self.suppliers[n];
        me.due_ms = self.at_ms + me.random.between(8_000, think_ms.max(40_000));
        let device = self.devices[n].id();
        let Some(core) = self.server.core.as_ref() else { return };
        let view = core.view().read();
        let found = view.state.devices.get(&device);
        let found = found.map(|found| (found.rules.clone(), found.stage.clone(), found.enrolment.endpoint));
        drop(view);
        let Some((rules, stage, bound_to)) = found else {
            let enrolment = self.devices[n].enrolment.clone();
            self.suppliers[n].due_ms = self.at_ms + 8_000;
            return self.supply(n, CommandBody::Enrol { enrolment, machine_name: "box".into() });
        };
        if stage == DeviceStage::Archived {
            if self.plan.load.varied {
                self.supply(n, CommandBody::ArchiveDevice { device });
            }
            return self.leave(n);
        }
        let mine = self.devices[n].enrolment.endpoint;
        if bound_to != mine {
            return self.supply(n, CommandBody::Rebind { device, endpoint: mine });
        }
        let change = |change| CommandBody::ChangeDevice { device, change };
        let set = |rules| change(DeviceChange { rules: Some(rules), ..DeviceChange::default() });
        let wishes = OwnerRules { yielding: rules.yielding, ..OwnerRules::default() };
        if self.healed || self.plan.load.scripted {
            if rules != wishes {
                self.supply(n, set(wishes));
            }
            return;
        }
        if self.suppliers[n].leaves {
            self.suppliers[n].due_ms = self.at_ms + 8_000;
            return self.supply(n, CommandBody::ArchiveDevice { device });
        }
        let random = &mut self.suppliers[n].random;
        let (wish, number) = (random.below(44), random.bits());
        let may = |kind| self.plan.may(kind);
        match wish {
            0 | 1 if may(FaultKind::OwnerRules) => {
                self.supply(n, set(OwnerRules { paused: !rules.paused, ..rules }));
            }
            2 | 3 if may(FaultKind::OwnerRules) => {
                self.supply(n, set(OwnerRules { draining: !rules.draining, ..rules }));
            }
            4 if may(FaultKind::OwnerRules) => {
                let from_minute = u16::try_from(number % 10_081).unwrap_or(0);
                let window = Window { from_minute, to_minute: (from_minute + 5_000) % 10_080 };
                self.supply(n, set(OwnerRules { schedule: vec![window], ..rules }));
            }
            5..9 if may(FaultKind::PriceJumps) => {
                let ask = Some(Rate(10_000 + number % 490_000));
                self.supply(n, change(DeviceChange { ask_per_unit: ask, ..DeviceChange::default() }));
            }
            9 if may(FaultKind::SupplierLeaves) && self.here() > 1 => self.leave(n),
            10 if may(FaultKind::SupplierLeaves) && self.here() > 1 => {
                self.suppliers[n].leaves = true;
                self.supply(n, set(OwnerRules { draining: true, ..rules }));
            }
            11 if self.plan.load.varied && !self.calm() && number.is_multiple_of(4) => self.rebind(n),
            14 if may(FaultKind::OwnerRules) => {
                self.supply(n, set(OwnerRules { no_egress: !rules.no_egress, ..rules }));
            }
            15 if may(FaultKind::OwnerRules) => self.supply(n, terms(device, number)),
            12 | 13 if self.plan.load.varied && !self.calm() => self.wrong_supply(n, number),
            _ => {}
        }
    }

    fn here(&self) -> usize {
        self.devices.iter().filter(|device| !device.left).count()
    }

    pub(super) fn supply(&mut self, n: usize, body: CommandBody) {
        let command = Command { id: None, actor: Actor::Wallet(supplier(n, self.plan.devices)), body };
        self.trace.note(self.at_ms, || format!("supplier of {n}: {:?}", command.body));
        self.send_to_server(Input::Submit(None, command));
    }

    /// The machine is unplugged and never comes back.
    pub(super) fn leave(&mut self, n: usize) {
        self.trace.note(self.at_ms, || format!("device {n} leaves for good"));
        let leases: Vec<_> = self.devices[n].supervisors.keys().copied().collect();
        for lease in leases {
            self.devices[n].kill_supervisor(lease);
        }
        self.devices[n].stop_agent();
        self.devices[n].left = true;
        self.net.disconnect(self.devices[n].endpoint, self.server_endpoint);
        self.poll_links();
        self.touch(Part::Device(n));
    }

    /// The machine gets a new key.
    fn rebind(&mut self, n: usize) {
        self.suppliers[n].rebound = self.suppliers[n].rebound.wrapping_add(1);
        self.suppliers[n].due_ms = self.at_ms + 8_000;
        let new = endpoint(n, self.suppliers[n].rebound);
        self.trace.note(self.at_ms, || format!("device {n} has a new key"));
        let device = &mut self.devices[n];
        self.net.disconnect(device.endpoint, self.server_endpoint);
        self.by_endpoint.remove(&device.endpoint);
        device.enrolment.endpoint = new;
        device.endpoint = ionet_net::EndpointId(new.0);
        device.linked_since_ms = None;
        device.link = self.net.attach(device.endpoint);
        device.stop_agent();
        device.start_due_ms = self.at_ms + 500;
        self.by_endpoint.insert(device.endpoint, n);
        let body = CommandBody::Rebind { device: device.id(), endpoint: new };
        self.poll_links();
        self.touch(Part::Device(n));
        self.supply(n, body);
    }
}

/// Terms that keep out one kind of work, or none.
fn terms(device: DeviceId, number: u64) -> CommandBody {
    let kind = WorkKind::ALL.get(usize::try_from(number % 4).unwrap_or(0)).copied();
    CommandBody::SetTerms {
        device,
        terms: Denials { kinds: kind.into_iter().collect(), ..Denials::default() },
    }
}
