//! The journal's disk fills up, its end is torn, its middle is damaged.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::cloud::{Cloud, PATIENCE, make_wallet, wait_for};
use crate::kit::Said;

/// A small disk of its own; unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// `None` where this user may not mount.
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "ionet-test"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Sends one micro-dollar; what was said.
fn send(cloud: &Cloud, to: &str) -> Said {
    cloud.renter.run(&["wallet", "send", to, "0.000001", "--yes"])
}

fn received(cloud: &Cloud) -> u64 {
    let wallet = cloud.renter.say(&["wallet", "show"]);
    super::cloud::FUNDS_USD * 1_000_000 - wallet["holdings"][0]["available"].as_u64().unwrap()
}

fn funded(cloud: &Cloud) {
    wait_for("the deposit", PATIENCE, || {
        (cloud.renter.say(&["wallet", "show"])["holdings"][0]["available"] != 0).then_some(())
    });
}

#[test]
fn a_full_disk_ends_the_server_and_after_freeing_space_everything_acknowledged_is_there() {
    let mut cloud = Cloud::new(&serde_json::json!({}));
    cloud.stop_server();
    let dir = cloud.home.path().join("server");
    fs::rename(&dir, dir.with_extension("kept")).unwrap();
    let Some(_disk) = SmallDisk::mount(&dir, "8m") else {
        return eprintln!("skipped: this user may not mount a small disk");
    };
    let copied = Command::new("cp").arg("-a").arg(dir.with_extension("kept").join(".")).arg(&dir).status();
    assert!(copied.unwrap().success());
    cloud.start_server();
    cloud.wait_served();
    funded(&cloud);
    let to = make_wallet(&cloud.home.path().join("friend"));
    assert_eq!(send(&cloud, &to).status, 0);
    let mut acknowledged = 1;

    let filler = dir.join("filler");
    fill(&filler);
    let refused = wait_for("a refusal", PATIENCE, || {
        let said = send(&cloud, &to);
        acknowledged += u64::from(said.status == 0);
        (said.status != 0).then_some(said)
    });
    let code = refused.json()["error"]["code"].as_str().unwrap().to_owned();
    assert!(
        ["stopping", "unreachable", "disk_full", "journal_io"].contains(&code.as_str()),
        "{}",
        refused.text()
    );
    let status = cloud.server_ended();
    assert!(!status.success(), "{status}");
    let said = cloud.server_out();
    assert!(said.contains("No space left") || said.contains("disk_full"), "{said}");

    fs::remove_file(&filler).unwrap();
    cloud.start_server();
    cloud.wait_served();
    let there = received(&cloud);
    assert!(there == acknowledged || there == acknowledged + 1, "{there} of {acknowledged} acknowledged");
    assert_eq!(send(&cloud, &to).status, 0);
    cloud.stop_server();
    cloud.renter.verify();
}

/// Leaves no byte free.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for chunk in [1 << 16, 1 << 12, 1 << 8, 1] {
        let bytes = vec![0; chunk];
        while file.write_all(&bytes).is_ok() {}
    }
}

/// The newest segment's public file.
fn segment(cloud: &Cloud) -> PathBuf {
    let folder = fs::read_dir(cloud.home.path().join("server/journal")).unwrap().flatten();
    let mut files: Vec<_> = folder.map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "public"));
    files.sort();
    files.pop().unwrap()
}

#[test]
fn a_torn_end_is_cut_and_said_and_other_damage_stops_the_start_with_its_place() {
    let mut cloud = Cloud::new(&serde_json::json!({}));
    funded(&cloud);
    let to = make_wallet(&cloud.home.path().join("friend"));
    for _ in 0..5 {
        assert_eq!(send(&cloud, &to).status, 0);
    }
    cloud.kill_server();
    let path = segment(&cloud);
    let name = path.file_name().unwrap().to_string_lossy().into_owned();

    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 7]).unwrap();
    let torn = cloud.renter.run(&["journal", "verify"]);
    assert_eq!(torn.status, 0, "{}", torn.text());
    assert!(torn.json()["torn"].as_str().is_some_and(|torn| torn.contains(&name)), "{}", torn.text());
    cloud.start_server();
    cloud.wait_served();
    let said = cloud.server_said();
    assert!(said.contains("cut") && said.contains(&name), "{said}");
    assert!(received(&cloud) >= 4);
    cloud.stop_server();
    cloud.renter.verify();

    let mut damaged = fs::read(&path).unwrap();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x10;
    fs::write(&path, &damaged).unwrap();
    let verified = cloud.renter.run(&["journal", "verify"]);
    assert!(verified.status != 0, "{}", verified.text());
    cloud.start_server();
    let status = cloud.server_ended();
    assert!(!status.success(), "{status}");
    let said = cloud.server_out();
    assert!(said.contains(&name), "no file: {said}");
    assert!(said.chars().any(|c| c.is_ascii_digit()) && said.contains("journal"), "no place: {said}");
    assert_eq!(fs::read(&path).unwrap(), damaged, "the evidence was changed");
    eprintln!("{said}");
}
