//! Programs beside the engine in its box: started through the door, ended by their leash, harmless to the host.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    time::Duration,
};

use ionet_runtime::{
    files::{self, Answer, Ask, Entry, Kind},
    sandbox::Phase,
    ssh,
};

use crate::support::{Site, eventually, exit_code, processes_with, shell_spec, wait_for};

const LONG_ENOUGH: Duration = Duration::from_secs(20);

#[test]
fn a_program_starts_beside_the_engine_and_ends_with_its_leash() {
    let site = Site::new();
    let (mut it, _tun) = site.start(shell_spec("door", "echo hello > /dev/shm/said; echo up; sleep 60"));
    let connector = it.connector();
    wait_for(&mut it, 20, |report| report.phase == Phase::Ready);
    eventually("the engine's word", || it.log_tail(100).contains("up"));
    let mut inside = connector.start(files::WORD, BTreeMap::new()).unwrap();
    inside.stdio.set_read_timeout(Some(LONG_ENOUGH)).unwrap();
    let ask = serde_json::to_vec(&Ask::Stat { path: "/dev/shm/said".into() }).unwrap();
    inside.stdio.write_all(&u32::try_from(ask.len()).unwrap().to_be_bytes()).unwrap();
    inside.stdio.write_all(&ask).unwrap();
    let mut length = [0; 4];
    inside.stdio.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    inside.stdio.read_exact(&mut answer).unwrap();
    let found: Answer<Option<Entry>> = serde_json::from_slice(&answer).unwrap();
    assert_eq!(found.unwrap().map(|entry| (entry.kind, entry.size)), Some((Kind::File, 6)));
    // The stream stays open in a hand that does not let go; the leash alone ends the program.
    let held = inside.stdio.try_clone().unwrap();
    assert_eq!(processes_with(files::WORD).len(), 1);
    drop(inside);
    eventually("the program's end", || processes_with(files::WORD).is_empty());
    drop(held);
    // What is no sub-command ends at once, and the engine goes on.
    let mut wrong = connector.start("no-such-word", BTreeMap::new()).unwrap();
    wrong.stdio.set_read_timeout(Some(LONG_ENOUGH)).unwrap();
    assert_eq!(wrong.stdio.read(&mut [0]).unwrap(), 0);
    assert_eq!(wait_for(&mut it, 5, |_| true).phase, Phase::Ready);
    assert!(it.remove().unwrap().finished);
    assert!(connector.start(files::WORD, BTreeMap::new()).is_err(), "the box is gone");
}

#[test]
fn a_launcher_that_is_stopped_or_killed_harms_the_box_alone() {
    let site = Site::new();
    let (mut it, _tun) = site.start(shell_spec("stopped", "kill -STOP $PPID; echo done; sleep 60"));
    wait_for(&mut it, 20, |report| report.phase == Phase::Ready);
    eventually("the stop", || it.log_tail(100).contains("done"));
    // Words that nobody takes are refused in the end, and none of them blocks.
    let connector = it.connector();
    let big: BTreeMap<String, String> = [("FILL".to_owned(), "x".repeat(60_000))].into();
    assert!((0..200).any(|_| connector.start(files::WORD, big.clone()).is_err()));
    assert!(it.remove().unwrap().finished);

    let (mut it, _tun) = site.start(shell_spec("killed", "kill -KILL $PPID; sleep 60"));
    assert_eq!(exit_code(&mut it), 137);
    assert!(it.remove().unwrap().finished);
    let (mut it, _tun) = site.start(shell_spec("signal", "kill -TERM $$"));
    assert_eq!(exit_code(&mut it), 143);
    assert!(it.remove().unwrap().finished);
}

#[test]
fn datagrams_reach_a_socket_in_the_box() {
    let site = Site::new();
    let serve = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 7001)); \
                 print('up', flush=True); b, a = s.recvfrom(99); s.sendto(b.upper(), a)";
    let (mut it, _tun) = site.start(shell_spec("udp", &format!("exec /usr/bin/python3 -c \"{serve}\"")));
    wait_for(&mut it, 20, |report| report.phase == Phase::Ready);
    eventually("the server", || it.log_tail(100).contains("up"));
    let socket = it.connector().datagrams(Ipv4Addr::new(10, 77, 0, 1), 7001).unwrap();
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(LONG_ENOUGH)).unwrap();
    socket.send(b"hello").unwrap();
    let mut answer = [0; 9];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!(&answer[..length], b"HELLO");
    assert!(it.remove().unwrap().finished);
}

#[test]
fn ssh_greets_in_the_box() {
    let site = Site::new();
    let (mut it, _tun) = site.start(shell_spec("ssh", "sleep 60"));
    wait_for(&mut it, 20, |report| report.phase == Phase::Ready);
    ssh::available().expect("scripts/setup installs it");
    let host_key = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(site.folder.path().join("key"))
        .status();
    assert!(host_key.unwrap().success());
    let key = std::fs::read_to_string(site.folder.path().join("key")).unwrap();
    let public = std::fs::read_to_string(site.folder.path().join("key.pub")).unwrap();
    let mut inside =
        it.connector().start(ssh::WORD, ssh::variables(&key, &[public.trim().to_owned()])).unwrap();
    inside.stdio.set_read_timeout(Some(LONG_ENOUGH)).unwrap();
    let mut greeting = [0; 8];
    inside.stdio.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"SSH-2.0-");
    assert!(it.remove().unwrap().finished);
}
