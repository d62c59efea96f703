//! Sealing, opening, windows.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn pair(cipher: Cipher) -> (SendKey, ReceiveKey) {
    (SendKey::new(cipher, &[7; 32], 0x4000_0001), ReceiveKey::new(cipher, &[7; 32], 0x4000_0001))
}

#[test]
fn what_is_sealed_opens_once_and_as_it_was() {
    for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
        let (send, receive) = pair(cipher);
        let packet = send.seal_alone(b"hello").unwrap();
        assert_eq!(packet.len(), PREFIX_BYTES + 5 + TAG_BYTES);
        assert_eq!(packet[..12], [0x40, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut opener = receive.opener();
        assert_eq!(opener.open(&mut packet.clone()).unwrap(), b"hello");
        assert_eq!(opener.open(&mut packet.clone()), Err(NotOpened::Replayed));
        assert_eq!(send.used(), [1, 33]);
    }
}

#[test]
fn a_changed_packet_does_not_open_and_the_true_one_still_does() {
    let (send, receive) = pair(Cipher::Aes256Gcm);
    let packet = send.seal_alone(b"hello").unwrap();
    let mut opener = receive.opener();
    for at in 4..packet.len() {
        let mut changed = packet.clone();
        changed[at] ^= 1;
        assert_eq!(opener.open(&mut changed), Err(NotOpened::Forged), "byte {at}");
    }
    for length in 0..packet.len() {
        assert_eq!(opener.open(&mut packet.clone()[..length]), Err(NotOpened::Forged), "{length} bytes");
    }
    let mut beyond = packet.clone();
    beyond[4] = 0xff;
    assert_eq!(opener.open(&mut beyond), Err(NotOpened::Forged), "no such counter");
    assert!(opener.open(&mut packet.clone()).is_ok());
}

#[test]
fn a_key_ends() {
    let (send, _) = pair(Cipher::Aes256Gcm);
    send.next.store(MOST_PACKETS - 1, Ordering::Relaxed);
    assert_eq!(send.reserve(2, 0), Some(MOST_PACKETS - 1));
    assert_eq!(send.reserve(1, 0), None);
    assert_eq!(send.seal_alone(b"x"), None);
}

#[test]
fn the_first_packet_and_every_new_way_are_news() {
    let (_, receive) = pair(Cipher::Aes256Gcm);
    assert!(!receive.is_used());
    let mut opener = receive.opener();
    assert!(opener.came(Way::Introducer) && !opener.came(Way::Introducer));
    assert!(receive.is_used());
    for port in 0..100 {
        assert!(opener.came(Way::Udp(([127, 0, 0, 1], port).into())));
    }
    assert_eq!(opener.state.ways.len(), MOST_WAYS);
}

#[test]
fn ciphers_are_chosen_by_what_both_have() {
    let (aes, chacha) = (Some(Cipher::Aes256Gcm), Some(Cipher::ChaCha20Poly1305));
    for (ours, theirs, chosen) in [
        (3, 3, aes),
        (1, 3, aes),
        (3, 2, chacha),
        (2, 2, chacha),
        (1, 2, None),
        (0, 3, None),
        (0xfc, 0xff, None),
    ] {
        assert_eq!(Cipher::choose(ours, theirs), chosen, "{ours} {theirs}");
    }
}

#[test]
fn the_window_slides() {
    let mut window = Window::default();
    // counter, fresh before it is marked
    for (counter, fresh) in [
        (0, true),
        (0, false),
        (1, true),
        (64, true),
        (63, true),
        (2, true),
        (WINDOW, true),
        (0, false),
        (3, true),
        (WINDOW + 3, true),
        (3, false),
        (4, true),
        (4, false),
        (1 << 40, true),
        (WINDOW + 3, false),
        ((1 << 40) - WINDOW, false),
        ((1 << 40) - WINDOW + 1, true),
        ((1 << 40) - 1, true),
        ((1 << 40) - 1, false),
        ((1 << 40) + 16384, true),
        ((1 << 40) + 16384 - 64, true),
    ] {
        assert_eq!(window.is_fresh(counter), fresh, "{counter}");
        if fresh {
            window.mark(counter);
        }
    }
}

proptest! {
    #[test]
    fn the_window_is_a_set_with_a_tail(steps in prop::collection::vec((0..4_u8, 0..20_000_u64), 1..400)) {
        let (mut window, mut seen, mut next) = (Window::default(), BTreeSet::new(), 0_u64);
        for (kind, by) in steps {
            let counter = match kind {
                0 => next + by % 3,
                1 => next + by,
                2 => next.saturating_sub(by % 100),
                _ => next.saturating_sub(by),
            };
            let fresh = counter >= next || (next - counter <= WINDOW && !seen.contains(&counter));
            prop_assert_eq!(window.is_fresh(counter), fresh);
            if fresh {
                window.mark(counter);
                seen.insert(counter);
                next = next.max(counter + 1);
            }
        }
    }
}
