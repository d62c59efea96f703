//! Registered devices are checked as soon as they are connected. The device measures itself, the server measures the
//! network; what the device says of the network counts for nothing.

use ionet_api::worker::ToWorker;
use ionet_domain::command::CommandBody;
use ionet_domain::device::{Device, DeviceStage, Measured};
use ionet_domain::{DeviceId, EndpointId};

use super::{Act, Todo, command};
use crate::fleet::{CheckNow, DeviceNow, NetworkMeasured};
use crate::view::View;

/// A device that has not answered for this long is asked again: twice what a probe takes over 1 Mbit/s.
const ASK_AGAIN_MS: u64 = 60_000;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    let connected = view.fleet.devices().filter(|(_, now)| now.connected);
    let known = connected.filter_map(|(id, now)| Some((*id, now, view.state.devices.get(id)?)));
    known.flat_map(|(id, now, device)| of_device(id, now, device, now_ms)).collect()
}

fn of_device(id: DeviceId, now: &DeviceNow, device: &Device, now_ms: u64) -> Vec<Todo> {
    match device.stage {
        DeviceStage::Registered => vec![command(CommandBody::BeginCheck { device: id })],
        DeviceStage::Checking => match result(&now.check) {
            Some(measured) => vec![command(CommandBody::ReportCheck { device: id, measured })],
            None => ask(&now.check, now.endpoint, now_ms),
        },
        _ => Vec::new(),
    }
}

fn ask(check: &CheckNow, endpoint: EndpointId, now_ms: u64) -> Vec<Todo> {
    if check.asked_ms.is_some_and(|asked_ms| now_ms < asked_ms + ASK_AGAIN_MS) {
        return Vec::new();
    }
    let told = Act::Tell(endpoint, Box::new(ToWorker::Check));
    vec![Todo::Act(Act::Probe(endpoint)), Todo::Act(told)]
}

fn result(check: &CheckNow) -> Option<Result<Measured, String>> {
    match (check.measured.as_ref()?, check.network) {
        (Err(reason), _) => Some(Err(reason.clone())),
        (Ok(measured), Some(network)) => Some(Ok(merged(measured, network))),
        (Ok(_), None) => None,
    }
}

fn merged(measured: &Measured, network: NetworkMeasured) -> Measured {
    Measured {
        network_down_mbit_s: network.down_mbit_s,
        network_up_mbit_s: network.up_mbit_s,
        rtt_us: network.rtt_us,
        ..measured.clone()
    }
}
