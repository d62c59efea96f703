//! What is asked of a tunnel, and the service at its end: a stream downwards, small requests on one connection, new connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::bench::{percentile, sorted};
use crate::{LabError, Result};

/// The first byte of a connection says what it is for.
const STREAM: u8 = b'S';
const ECHO: u8 = b'E';
const LARGE: u8 = b'L';
const REQUEST_BYTES: usize = 200;
const LARGE_BYTES: usize = 64 << 10;
/// So many large ones make a tunnel a long one at once.
const LARGE_COUNT: usize = 8;
/// Until a tunnel has found its way and its windows.
const WARM_UP: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECTING: usize = 16;

/// Serves on a free port of the loopback for as long as the process lives.
pub(super) fn serve() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(LabError::io("listen"))?;
    let at = listener.local_addr().map_err(LabError::io("listen"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Who goes away in the middle is the usual end of a measurement.
            let _ = thread::Builder::new().stack_size(256 << 10).spawn(move || _ = answer(stream));
        }
    });
    Ok(at)
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    if kind == [STREAM] {
        let much = vec![7; 256 << 10];
        loop {
            stream.write_all(&much)?;
        }
    }
    let mut request = vec![0; if kind == [LARGE] { LARGE_BYTES } else { REQUEST_BYTES }];
    loop {
        stream.read_exact(&mut request)?;
        stream.write_all(&request)?;
    }
}

fn connect(at: SocketAddr, kind: u8) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&[kind])?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> std::io::Result<()> {
    ask_for(stream, &mut [5; REQUEST_BYTES])
}

fn ask_for(stream: &mut TcpStream, bytes: &mut [u8]) -> std::io::Result<()> {
    stream.write_all(bytes)?;
    stream.read_exact(bytes)
}

/// Waits until the service answers through the tunnel.
pub(super) fn wait(at: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    loop {
        match connect(at, ECHO).and_then(|mut stream| ask(&mut stream)) {
            Ok(()) => return Ok(()),
            Err(error) if begun.elapsed() > PATIENCE => return Err(LabError::io("reach the service")(error)),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// One stream down for so long; gigabits a second. `measured` is told when it counts, and the gigabits that it counted.
pub(super) fn stream(at: SocketAddr, over: Duration, mut measured: impl FnMut(f64)) -> Result<f64> {
    let failed = || LabError::io("read a stream");
    let mut stream = connect(at, STREAM).map_err(failed())?;
    let mut buffer = vec![0; 1 << 20];
    let mut read_for = |over: Duration| {
        let (begun, mut bytes) = (Instant::now(), 0);
        while begun.elapsed() < over {
            bytes += match stream.read(&mut buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                read => read?,
            };
        }
        Ok((bytes as f64 * 8.0 / 1e9, begun.elapsed().as_secs_f64()))
    };
    read_for(WARM_UP).map_err(failed())?;
    measured(0.0);
    let (gbit, seconds) = read_for(over).map_err(failed())?;
    measured(gbit);
    Ok(gbit / seconds)
}

/// The middle one of many small requests on one connection, in microseconds.
pub(super) fn request_us(at: SocketAddr, over: Duration) -> Result<f64> {
    let failed = || LabError::io("ask through a tunnel");
    let mut stream = connect(at, ECHO).map_err(failed())?;
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        ask(&mut stream).map_err(failed())?;
    }
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < over {
        let asked = Instant::now();
        ask(&mut stream).map_err(failed())?;
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    Ok(percentile(&sorted(times), 50))
}

/// Connections a second, each new, with one request.
pub(super) fn connections(at: SocketAddr, over: Duration) -> Result<f64> {
    let (done, begun) = (AtomicU64::new(0), Instant::now());
    let one = || {
        while begun.elapsed() < over {
            ask(&mut connect(at, ECHO)?)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, std::io::Error>(())
    };
    thread::scope(|scope| {
        let all: Vec<_> = (0..CONNECTING).map(|_| scope.spawn(one)).collect();
        let ended = all.into_iter().map(|one| one.join().unwrap_or(Ok(())));
        ended.collect::<std::io::Result<()>>()
    })
    .map_err(LabError::io("connect through a tunnel"))?;
    Ok(done.into_inner() as f64 / begun.elapsed().as_secs_f64())
}

/// Connections that stay open, each used enough to be taken for a long one, until it is enough or a minute is over.
pub(super) fn keep_open(
    at: SocketAddr,
    count: usize,
    enough: impl Fn() -> Result<bool>,
) -> Result<Vec<TcpStream>> {
    let failed = || LabError::io("keep connections open");
    let open = (0..count).map(|_| connect(at, LARGE)).collect::<std::io::Result<Vec<_>>>();
    let mut open = open.map_err(failed())?;
    let (begun, mut bytes) = (Instant::now(), vec![5; LARGE_BYTES]);
    while !enough()? {
        if begun.elapsed() > 3 * PATIENCE {
            break;
        }
        for stream in &mut open {
            for _ in 0..LARGE_COUNT {
                ask_for(stream, &mut bytes).map_err(failed())?;
            }
        }
    }
    Ok(open)
}
