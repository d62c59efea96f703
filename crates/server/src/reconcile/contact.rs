//! Devices that fell silent become unknown, never failed; heard ones are connected again.

use ionet_domain::command::CommandBody;
use ionet_domain::device::{Contact, Device, DeviceStage};

use super::{Todo, command};
use crate::fleet::SILENT_MS;
use crate::view::View;

pub(super) fn step(view: &View, now_ms: u64) -> Vec<Todo> {
    // Nobody speaks for a simulated one.
    let speaks = |device: &Device| device.stage != DeviceStage::Archived && !device.enrolment.simulated;
    let live = view.state.devices.iter().filter(|(_, device)| speaks(device));
    live.filter_map(|(id, device)| {
        let since_ms = view.fleet.heard_ms(*id);
        let contact = match device.contact {
            Contact::Unknown { .. } if view.fleet.connected(*id) => Contact::Connected,
            Contact::Connected if now_ms.saturating_sub(since_ms) > SILENT_MS => {
                Contact::Unknown { since_ms }
            }
            _ => return None,
        };
        Some(command(CommandBody::NoteContact { device: *id, contact }))
    })
    .collect()
}
