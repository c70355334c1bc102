//! tunnel-load: what `scripts/bench-tunnel` sends through a tunnel besides TCP.
//!
//! ```text
//! tunnel-load udp  FROM TO ADDRESS BYTES RATE SECONDS    prints: sent, received, datagrams a second that arrived
//! tunnel-load ping FROM    ADDRESS RATE SECONDS          prints: sent, answered, p50 and p99 in µs
//! ```
//!
//! FROM and TO are network namespaces (names of `ip netns`), ADDRESS is the far one's, BYTES are a datagram's payload, RATE
//! is a second's; 0 is as many as go. Both ends of `udp` are threads of one process, so what was lost is known at the end.
//!
//! Datagrams go and come by sendmmsg and recvmmsg, because one a system call would measure the sender. At a RATE they go once a
//! millisecond, as iperf3's do. A ping is one at a time and sleeps in between, as people's do: what it measures has the wake-ups in.

mod enter;
mod timers;

use std::fmt::Display;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Datagrams a system call.
const BATCH: usize = 64;
/// 1,400 bytes of payload and what comes around them fit; nothing here is fragmented.
const MOST_BYTES: usize = 2048;
/// What the receiver's socket holds: more than a tunnel can deliver while this thread waits for a processor.
const BUFFER: libc::c_int = 8 << 20;
/// Datagrams that are still under way when the last was sent: a tunnel's queues drain within this.
const LINGER: Duration = Duration::from_millis(300);
/// A ping that has no answer by then is lost.
const PATIENCE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["udp", from, to, address, bytes, rate, seconds] => udp(from, to, address, bytes, rate, seconds),
        ["ping", from, address, rate, seconds] => ping(from, address, rate, seconds),
        _ => Err("arguments: udp FROM TO ADDRESS BYTES RATE SECONDS, or ping FROM ADDRESS RATE SECONDS".into()),
    };
    match done {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("tunnel-load: {message}");
            ExitCode::FAILURE
        }
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("not a number that fits: {text}"))
}

/// For `map_err`: what was tried, and why it was in vain.
fn at<E: Display>(what: &str) -> impl Fn(E) -> String + '_ {
    move |error| format!("{what}: {error}")
}

fn udp(from: &str, to: &str, address: &str, bytes: &str, rate: &str, seconds: &str) -> Result<String, String> {
    let address: IpAddr = address.parse().map_err(at(address))?;
    let bytes: usize = number(bytes)?;
    if bytes > MOST_BYTES {
        return Err(format!("at most {MOST_BYTES} bytes"));
    }
    let (rate, time): (f64, Duration) = (number(rate)?, Duration::from_secs(number(seconds)?));
    let over = AtomicBool::new(false);
    let (ready, port) = mpsc::channel();
    let (sent, received) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(to, address, ready, &over));
        let sender = scope.spawn(move || match port.recv() {
            Ok(port) => send(from, SocketAddr::new(address, port), bytes, rate, time),
            Err(_) => Err("no receiver".to_string()),
        });
        let sent = sender.join();
        over.store(true, Ordering::Relaxed);
        (sent, receiver.join())
    });
    let received = received.map_err(|_| "the receiver panicked")??;
    let sent = sent.map_err(|_| "the sender panicked")??;
    Ok(format!("{sent} {received} {:.0}", received as f64 / time.as_secs_f64()))
}

fn send(namespace: &str, to: SocketAddr, bytes: usize, rate: f64, time: Duration) -> Result<u64, String> {
    enter::enter(namespace).map_err(at(namespace))?;
    timers::precise_timers();
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).and_then(|socket| socket.connect(to).map(|()| socket)).map_err(at("sending"))?;
    let mut buffers = Buffers::new(bytes);
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            return Ok(sent);
        }
        let due = if rate == 0.0 { u64::MAX } else { (rate * elapsed.as_secs_f64()) as u64 };
        if sent >= due {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        // A full queue refuses: what was refused was not sent, and the next may go.
        sent += buffers.send(&socket, (due - sent).min(BATCH as u64) as usize).unwrap_or(0);
    }
}

fn receive(namespace: &str, address: IpAddr, ready: mpsc::Sender<u16>, over: &AtomicBool) -> Result<u64, String> {
    enter::enter(namespace).map_err(at(namespace))?;
    let socket = UdpSocket::bind((address, 0)).map_err(at("receiving"))?;
    socket.set_read_timeout(Some(LINGER)).map_err(at("receiving"))?;
    let size = std::ptr::from_ref(&BUFFER).cast();
    // SAFETY: the descriptor is open, and the option takes a number of this length, which outlives the call.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            size,
            size_of_val(&BUFFER) as libc::socklen_t,
        )
    };
    let port = socket.local_addr().map_err(at("receiving"))?.port();
    ready.send(port).map_err(at("receiving"))?;
    let (mut buffers, mut received) = (Buffers::new(MOST_BYTES), 0);
    loop {
        match buffers.receive(&socket) {
            Ok(count) => received += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if over.load(Ordering::Relaxed) {
                    return Ok(received);
                }
            }
            Err(error) => return Err(format!("receiving: {error}")),
        }
    }
}

/// The messages of a batch, which point at one buffer each.
struct Buffers {
    headers: Vec<libc::mmsghdr>,
    _pointers: Vec<libc::iovec>,
    _bytes: Vec<u8>,
}

impl Buffers {
    fn new(len: usize) -> Self {
        let mut bytes = vec![0; BATCH * len];
        // An empty payload is a datagram, too; chunks of nothing are not.
        let mut pointers: Vec<libc::iovec> = (0..BATCH)
            .map(|at| libc::iovec { iov_base: bytes[at * len..].as_mut_ptr().cast(), iov_len: len })
            .collect();
        let headers = pointers
            .iter_mut()
            .map(|pointer| {
                // SAFETY: zeros are a message without address, buffers and control data.
                let mut header: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
                (header.msg_hdr.msg_iov, header.msg_hdr.msg_iovlen) = (pointer, 1);
                header
            })
            .collect();
        Self { headers, _pointers: pointers, _bytes: bytes }
    }

    fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<u64> {
        let (headers, count) = (self.headers.as_mut_ptr(), count as libc::c_uint);
        // SAFETY: `count` is at most BATCH; the headers point at buffers that live as long as they, and never move.
        counted(unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count, 0) })
    }

    fn receive(&mut self, socket: &UdpSocket) -> io::Result<u64> {
        let (headers, none) = (self.headers.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: as above, and nothing else reads or writes the buffers meanwhile.
        let result =
            unsafe { libc::recvmmsg(socket.as_raw_fd(), headers, BATCH as libc::c_uint, libc::MSG_WAITFORONE, none) };
        counted(result)
    }
}

fn counted(result: libc::c_int) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn ping(from: &str, address: &str, rate: &str, seconds: &str) -> Result<String, String> {
    let address: IpAddr = address.parse().map_err(at(address))?;
    let (rate, time): (f64, Duration) = (number(rate)?, Duration::from_secs(number(seconds)?));
    if !address.is_ipv4() || !(0.1..=10_000.0).contains(&rate) {
        return Err("pings are for IPv4, at 0.1 to 10,000 a second".into());
    }
    enter::enter(from).map_err(at(from))?;
    timers::precise_timers();
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).map_err(at("ICMP"))?;
    socket.connect(&SocketAddr::new(address, 0).into()).map_err(at(&address.to_string()))?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(at("ICMP"))?;

    let (start, mut took, mut sent) = (Instant::now(), Vec::new(), 0u32);
    while start.elapsed() < time {
        let request = echo_request(sent as u16);
        sent += 1;
        let asked = Instant::now();
        socket.send(&request).map_err(at("a ping"))?;
        if answered(&socket, &request[4..8], asked) {
            took.push(asked.elapsed());
        }
        if let Some(left) = Duration::from_secs_f64(f64::from(sent) / rate).checked_sub(start.elapsed()) {
            std::thread::sleep(left);
        }
    }
    took.sort();
    let part = |part: usize| took.get(took.len() * part / 100).map_or(f64::NAN, |took| took.as_secs_f64() * 1e6);
    Ok(format!("{sent} {} {:.1} {:.1}", took.len(), part(50), part(99)))
}

/// Type 8, code 0, checksum, identifier, sequence number, and as much behind them as `ping` sends.
fn echo_request(sequence: u16) -> [u8; 64] {
    let mut request = [0; 64];
    request[0] = 8;
    request[4..6].copy_from_slice(&(std::process::id() as u16).to_be_bytes());
    request[6..8].copy_from_slice(&sequence.to_be_bytes());
    let sum: u32 = request.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    request[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    request
}

/// Waits for the echo reply of this identifier and sequence number; everything else that comes is somebody else's.
fn answered(socket: &Socket, name: &[u8], asked: Instant) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 256];
    while asked.elapsed() < PATIENCE {
        let Ok(len) = socket.recv(&mut buffer) else { return false };
        // SAFETY: the kernel filled so many bytes.
        let packet = unsafe { buffer[..len].assume_init_ref() };
        let icmp = packet.get(usize::from(packet[0] & 15) * 4..).unwrap_or_default();
        if icmp.first() == Some(&0) && icmp.get(4..8) == Some(name) {
            return true;
        }
    }
    false
}
