//! What a real box of a real supervisor reaches outside its cluster. Needs root: a namespace of its own stands for the
//! internet, behind a router at the other end of a cable of this machine.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use ionet_api::worker::{BoxPhase, DesiredLease};
use ionet_domain::LeaseId;
use ionet_domain::market::Egress;

use crate::fixtures::wanted;
use crate::server::{Site, eventually, rss_bytes};

/// A server far away, the router's own address on this machine's cable, and this machine's.
const FAR: &str = "203.0.113.77";
const ROUTER: &str = "192.168.177.2";
const HERE: &str = "192.168.177.1";

struct Internet {
    name: String,
    server: Option<Child>,
}

impl Internet {
    /// `None`, with the reason printed, where it cannot be made.
    fn new(folder: &Path) -> Option<Self> {
        let name = format!("net-{}", std::process::id());
        let mut it = Self { name, server: None };
        let (n, far, here, router) =
            (&it.name, format!("{FAR}/32"), format!("{HERE}/30"), format!("{ROUTER}/30"));
        let cable = format!("far{}", std::process::id());
        let made = [
            vec!["netns", "add", n],
            vec!["link", "add", &cable, "type", "veth", "peer", "name", "cable", "netns", n],
            vec!["addr", "add", &here, "dev", &cable],
            vec!["link", "set", &cable, "up"],
            vec!["-n", n, "addr", "add", &router, "dev", "cable"],
            vec!["-n", n, "addr", "add", &far, "dev", "lo"],
            vec!["-n", n, "link", "set", "lo", "up"],
            vec!["-n", n, "link", "set", "cable", "up"],
            vec!["route", "add", &far, "via", ROUTER],
        ];
        for words in &made {
            if let Err(reason) = run("ip", words) {
                eprintln!("skipped: ip {words:?}: {reason}");
                return None;
            }
        }
        let server = Command::new("ip")
            .args(["netns", "exec", n, "/usr/bin/python3", "-m", "http.server", "80", "--directory"])
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        it.server = Some(server.unwrap());
        Some(it)
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = run("ip", &["netns", "delete", &self.name]);
    }
}

fn run(program: &str, words: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(words).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// A package index with one small wheel, as pip reads it.
fn index(folder: &Path) {
    let package = folder.join("simple/tinywheel");
    std::fs::create_dir_all(&package).unwrap();
    let name = "tinywheel-1.0-py3-none-any.whl";
    let program = format!(
        "import zipfile\nw = zipfile.ZipFile({:?}, 'w')\nd = 'tinywheel-1.0.dist-info/'\n\
         w.writestr('tinywheel.py', 'WORD = \"installed\"\\n')\n\
         w.writestr(d + 'METADATA', 'Metadata-Version: 2.1\\nName: tinywheel\\nVersion: 1.0\\n')\n\
         w.writestr(d + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
         w.writestr(d + 'RECORD', '')\nw.close()\n",
        package.join(name).to_string_lossy()
    );
    run("/usr/bin/python3", &["-c", &program]).unwrap();
    let page = format!("<a href=\"{name}\">{name}</a>");
    std::fs::File::create(package.join("index.html")).unwrap().write_all(page.as_bytes()).unwrap();
    std::fs::write(folder.join("large"), vec![7; 64 << 20]).unwrap();
}

/// Says of each what came of it, then waits for `go` and does the first again.
fn script() -> String {
    format!(
        r#"
say() {{ echo "$1 $(/usr/bin/python3 -c "$2" 2>&1 | tail -n 1)"; }}
get='import sys,urllib.request as u; print(len(u.urlopen(sys.argv[1], timeout=20).read()))'
reach() {{ echo "$1 $(/usr/bin/python3 -c "$get" http://$1 2>&1 | tail -n 1)"; }}
reach {FAR}/simple/tinywheel/
reach {HERE}/
reach {ROUTER}/
reach 169.254.169.254/
reach 127.0.0.1/
say source 'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("8.8.8.8", 9)); print(s.getsockname()[0])'
PYTHONPATH=$(echo /usr/share/python-wheels/pip-*.whl) /usr/bin/python3 -m pip install --break-system-packages --no-cache-dir --disable-pip-version-check -q --target lib \
  --index-url http://{FAR}/simple/ --trusted-host {FAR} tinywheel 2>&1
say pip 'import sys; sys.path.insert(0, "lib"); import tinywheel; print(tinywheel.WORD)'
say speed 'import time,urllib.request as u; t = time.time(); n = len(u.urlopen("http://{FAR}/large").read()); print(round(8 * n / 1e9 / (time.time() - t), 2), "Gbit/s")'
echo done
until [ -e go ]; do sleep 0.05; done
reach {FAR}/simple/tinywheel/
say name 'import socket; socket.gethostbyname("example.org")'
echo end
"#
    )
}

fn lease(id: LeaseId) -> DesiredLease {
    let mut it = wanted(id);
    it.program.argv = vec!["/bin/sh".into(), "-c".into(), script()];
    it.running = true;
    it.paid_ms = 600_000;
    it
}

fn output(site: &Site, id: LeaseId) -> String {
    std::fs::read_to_string(site.box_dir(id).join("log/output.log")).unwrap_or_default()
}

/// The line of the log that begins so.
fn line(log: &str, begins: &str) -> String {
    let found = log.lines().filter_map(|line| line.strip_prefix(begins)).next_back();
    found.unwrap_or_else(|| panic!("{begins}: {log}")).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_box_reaches_the_internet_and_nothing_near_until_it_is_told_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    index(folder.path());
    let Some(_internet) = Internet::new(folder.path()) else { return };
    let site = Site::new().await;
    let worker = site.worker().await;
    eventually("the worker links", || site.hellos() == 1).await;
    let id = site.lease(0);
    let mut wanted = lease(id);
    site.want(vec![wanted.clone()], vec![]).await;
    site.until_phase(id, &BoxPhase::Ready).await;
    eventually("the first round is done", || output(&site, id).contains("\ndone\n")).await;
    let log = output(&site, id);
    println!("{log}");
    println!("supervisor: {} kB", rss_bytes(site.supervisor(id).unwrap()) / 1024);
    let far = format!("{FAR}/simple/tinywheel/");
    assert!(line(&log, &far).parse::<u32>().is_ok(), "{log}");
    for near in [HERE, ROUTER, "169.254.169.254"] {
        assert!(line(&log, &format!("{near}/")).contains("No route to host"), "{near}: {log}");
    }
    assert!(line(&log, "127.0.0.1/").contains("refused"), "the box's own loopback: {log}");
    assert_eq!(line(&log, "source "), "10.77.0.1", "one address for members and for the world");
    assert_eq!(line(&log, "pip "), "installed", "{log}");
    // It is counted, and told every few seconds.
    let metered = site.until(id, 60, |o| o.egress.is_some_and(|used| used.received_bytes > 64 << 20)).await;
    let used = metered.egress.unwrap();
    assert_eq!(used.mode, Egress::On);
    assert!(used.sent_bytes > 0 && used.opened >= 4 && used.refused == 3, "{used:?}");
    // Told otherwise while it runs.
    wanted.egress = Egress::Listed;
    wanted.program.allow = BTreeSet::from(["203.0.113.78".parse().unwrap()]);
    site.want(vec![wanted], vec![]).await;
    eventually("the rules are taken", || site.log(id).contains("new rules for the way out")).await;
    std::fs::write(site.box_dir(id).join("work/go"), "").unwrap();
    eventually("the second round is done", || output(&site, id).contains("\nend\n")).await;
    let log = output(&site, id);
    assert!(line(&log, &far).contains("No route to host"), "{log}");
    assert!(line(&log, "name ").contains("gaierror"), "{log}");
    site.want(vec![], vec![id]).await;
    site.until_removed(id).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operators_word_comes_first() {
    let site = Site::new().await;
    let mut config = site.config();
    config.egress.forbidden = true;
    let worker = ionet_worker::Worker::start(config).await.unwrap();
    eventually("the worker links", || site.hellos() == 1).await;
    let id = site.lease(0);
    let mut wanted = wanted(id);
    let program = "import socket; print('answer', socket.socket().connect_ex(('203.0.113.77', 80)))";
    wanted.program.argv = ["/usr/bin/python3", "-c", program].map(str::to_owned).to_vec();
    site.want(vec![wanted], vec![]).await;
    site.until(id, 60, |o| matches!(o.phase, BoxPhase::Exited { exit_code: 0 })).await;
    assert_eq!(line(&output(&site, id), "answer "), "113", "no route to host");
    let told = site.until(id, 60, |o| o.egress.is_some_and(|used| used.refused > 0)).await.egress.unwrap();
    assert_eq!((told.mode, told.refused, told.sent_bytes), (Egress::Off, 1, 0));
    site.want(vec![], vec![id]).await;
    site.until_removed(id).await;
    worker.stop().await;
}
