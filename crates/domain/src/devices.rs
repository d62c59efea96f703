//! The devices of a state, by id.
//!
//! A map that keeps each device in a place of its own: ids grow with time, so the map's own nodes are half empty, and a
//! device inside of them would take twice its size. As JSON it is the map. Not here: what a device is (`device`).

use std::collections::{BTreeMap, btree_map};
use std::ops::Index;

use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::id::DeviceId;

/// Devices by id, the oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Devices(BTreeMap<DeviceId, Box<Device>>);

impl Devices {
    /// A device.
    pub fn get(&self, id: &DeviceId) -> Option<&Device> {
        self.0.get(id).map(AsRef::as_ref)
    }

    /// A device, to be changed.
    pub fn get_mut(&mut self, id: &DeviceId) -> Option<&mut Device> {
        self.0.get_mut(id).map(AsMut::as_mut)
    }

    /// Puts a device in; the one that was there before.
    pub fn insert(&mut self, id: DeviceId, device: Device) -> Option<Device> {
        self.0.insert(id, Box::new(device)).map(|before| *before)
    }

    /// Keeps the devices of which this is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&DeviceId, &mut Device) -> bool) {
        self.0.retain(|id, device| keep(id, device));
    }

    /// Whether there is such a device.
    pub fn contains_key(&self, id: &DeviceId) -> bool {
        self.0.contains_key(id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All, the oldest first.
    pub fn iter(&self) -> Iter<'_> {
        Iter(self.0.iter())
    }

    /// Their ids, the oldest first.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &DeviceId> + ExactSizeIterator {
        self.0.keys()
    }

    /// The devices without their ids, the oldest first.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &Device> + ExactSizeIterator {
        self.0.values().map(AsRef::as_ref)
    }

    /// The map itself.
    pub fn as_map(&self) -> &BTreeMap<DeviceId, Box<Device>> {
        &self.0
    }
}

impl Index<&DeviceId> for Devices {
    type Output = Device;
    fn index(&self, id: &DeviceId) -> &Device {
        &self.0[id]
    }
}

/// Devices with their ids, the oldest first.
#[derive(Debug, Clone)]
pub struct Iter<'a>(btree_map::Iter<'a, DeviceId, Box<Device>>);

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a DeviceId, &'a Device);
    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(id, device)| (id, device.as_ref()))
    }
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<'a> IntoIterator for &'a Devices {
    type Item = (&'a DeviceId, &'a Device);
    type IntoIter = Iter<'a>;
    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}
