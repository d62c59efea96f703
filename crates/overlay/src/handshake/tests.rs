//! Handshakes that work, and all that do not.

use super::*;
use proptest::prelude::*;

const BOTH: u8 = 3;

fn member(seed: u8) -> Identity {
    Identity::new("c1", &[seed; 32])
}

fn meet(a: &Identity, b: &Identity) -> (Session, Session) {
    let (mut waiting, first) = a.initiate(&b.key(), 0x4000_000a, BOTH, b"from a", [1; 32]).unwrap();
    assert!(b.is_for_us(&first) && !a.is_for_us(&first));
    let asked = b.read(&first, [2; 32]).unwrap();
    assert_eq!((asked.from, &asked.payload[..]), (noise_key(&a.key()).unwrap(), &b"from a"[..]));
    let (theirs, second) = b.answer(asked, &a.key(), 0x4000_000b, BOTH, b"from b", 7).unwrap();
    assert_eq!(response_index(&second), Some(0x4000_000a));
    let (ours, payload) = a.finish(&mut waiting, &second, 8).unwrap();
    assert_eq!(payload, b"from b");
    (ours, theirs)
}

fn passes(from: &Session, to: &Session) -> bool {
    let mut packet = from.send.seal_alone(b"data").unwrap();
    to.receive.opener().open(&mut packet).is_ok()
}

#[test]
fn two_members_have_the_same_keys_afterwards_each_way_its_own() {
    let (a, b) = (member(1), member(2));
    let (ours, theirs) = meet(&a, &b);
    assert!(passes(&ours, &theirs) && passes(&theirs, &ours) && !passes(&ours, &ours));
    assert_eq!((ours.send.remote_index(), ours.receive.index()), (0x4000_000b, 0x4000_000a));
    assert_eq!((theirs.role, theirs.begun_ms, ours.role), (Role::Responder, 7, Role::Initiator));
}

#[test]
fn the_public_key_is_that_of_ed25519() {
    // RFC 8032, section 7.1, test 1.
    let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
    let key = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
    let identity = Identity::new("c1", &seed);
    assert_eq!(identity.key(), PeerKey(key));
    assert_eq!(noise_key(&identity.key()).unwrap(), public(&identity.private));
    assert!(!format!("{identity:?}").contains("9d61"));
}

fn hex(text: &str) -> [u8; 32] {
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
}

#[test]
fn what_is_no_key_is_refused() {
    let mut identity = [0; 32];
    identity[0] = 1;
    for key in [[2; 32], [0; 32], identity] {
        assert_eq!(noise_key(&PeerKey(key)).unwrap_err().code(), "overlay_bad_key", "{key:?}");
    }
}

#[test]
fn other_clusters_and_other_keys_get_nothing() {
    let (a, b) = (member(1), member(2));
    let abroad = Identity::new("c2", &[1; 32]);
    let (_, message) = abroad.initiate(&b.key(), 1, BOTH, b"", [1; 32]).unwrap();
    assert_eq!(b.read(&message, [2; 32]).unwrap_err().code(), "overlay_handshake");
    let (_, message) = a.initiate(&member(3).key(), 1, BOTH, b"", [1; 32]).unwrap();
    assert!(b.read(&message, [2; 32]).is_err(), "for somebody else");
    let (_, message) = a.initiate(&b.key(), 1, BOTH, b"", [1; 32]).unwrap();
    let asked = b.read(&message, [2; 32]).unwrap();
    assert!(b.answer(asked, &member(3).key(), 2, BOTH, b"", 0).is_err(), "as if it were another");
}

#[test]
fn a_response_is_for_its_initiation_only_and_may_come_after_a_false_one() {
    let (a, b) = (member(1), member(2));
    let (mut waiting, first) = a.initiate(&b.key(), 1, BOTH, b"", [1; 32]).unwrap();
    let (mut other, _) = a.initiate(&b.key(), 1, BOTH, b"", [3; 32]).unwrap();
    let (session, second) =
        b.answer(b.read(&first, [2; 32]).unwrap(), &a.key(), 2, BOTH, b"payload", 0).unwrap();
    for at in 0..second.len() {
        let mut changed = second.clone();
        changed[at] ^= 1;
        assert!(a.finish(&mut waiting, &changed, 0).is_err(), "byte {at}");
        assert!(a.finish(&mut waiting, &second[..at], 0).is_err(), "{at} bytes");
    }
    // Stamped well by somebody who knows cluster and key, but not made by b.
    let mut body = second[8 + STAMP_BYTES..].to_vec();
    body[40] ^= 1;
    assert!(a.finish(&mut waiting, &b.stamp(&a.key(), &second[..8], &body), 0).is_err());
    assert!(a.finish(&mut other, &second, 0).is_err());
    let (ours, _) = a.finish(&mut waiting, &second, 0).unwrap();
    assert!(passes(&ours, &session));
}

#[test]
fn ciphers_are_agreed_on() {
    let (a, b) = (member(1), member(2));
    for (ours, theirs, agreed) in [(3, 3, true), (2, 3, true), (1, 1, true), (1, 2, false), (0, 3, false)] {
        let (mut waiting, first) = a.initiate(&b.key(), 1, ours, b"", [1; 32]).unwrap();
        let answer = b.answer(b.read(&first, [2; 32]).unwrap(), &a.key(), 2, theirs, b"", 0);
        assert_eq!(answer.is_ok(), agreed, "{ours} {theirs}");
        if let Ok((session, second)) = answer {
            assert!(passes(&a.finish(&mut waiting, &second, 0).unwrap().0, &session));
        }
    }
}

#[test]
fn payloads_have_a_limit() {
    let (a, b) = (member(1), member(2));
    let (_, message) = a.initiate(&b.key(), 1, BOTH, &[7; MOST_PAYLOAD_BYTES], [1; 32]).unwrap();
    assert!(message.len() <= 1200 && b.read(&message, [2; 32]).is_ok());
    let error = a.initiate(&b.key(), 1, BOTH, &[7; MOST_PAYLOAD_BYTES + 1], [1; 32]).unwrap_err();
    assert_eq!(error.code(), "overlay_noise");
}

proptest! {
    #[test]
    fn nothing_from_the_wire_is_more_than_an_error(kind in 0..4_u8, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let b = member(2);
        let mut message = vec![0, 0, 0, kind];
        message.extend(&bytes);
        prop_assert!(b.read(&message, [2; 32]).is_err());
        // Stamped well, so that Noise sees it.
        let stamped = member(1).stamp(&b.key(), &INITIATION, &bytes);
        prop_assert!(b.is_for_us(&stamped));
        prop_assert!(b.read(&stamped, [2; 32]).is_err());
    }
}
