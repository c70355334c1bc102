//! Probes that reach this machine, before its own firewall has its say.
//!
//! A firewall on the machine itself that lets only answers in keeps out the first packet of a peer whose NAT picks a port that
//! nobody can know beforehand, also where a mapped port leads it here. A packet socket (packet(7)) sees that packet all the same,
//! before netfilter does. It tells where the peer is; a probe of our own to there opens the firewall by the firewall's own rules,
//! and nothing else is made of it.
//!
//! ```text
//! the network ─┬─► packet socket, filtered: for us, UDP, our port, "DUDP" 4 ─► a moment later ─► the core
//!              └─► netfilter ─► our UDP socket ─► the core, first
//! ```
//!
//! Open only while a punch goes on, for every packet that the machine receives passes the filter. Needs CAP_NET_RAW; without it
//! nothing is overheard, and calls go on as well as they can. (Tailscale hears its probes so all the time.) Assumes that what the
//! kernel gives begins with the IP header, as with SOCK_DGRAM it does, and that addresses it gives may be forged, as a UDP
//! socket's may be: the probe inside is sealed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tracing::debug;

use super::sys;
use crate::proto::ip::{V4_HEADER, V6_HEADER};
use crate::proto::probe;
use crate::proto::wire::{Dudp, Kind, MAGIC};

/// So long after the packet, the copy that our UDP socket was given is with the core already, and this one is no news.
const AFTER: Duration = Duration::from_millis(2);
/// What is taken at a time: more probes than a call has in so short a time, and a flood's share of it is small.
const BATCH: usize = 64;
/// The longest header of IPv4 (RFC 791 section 3.1).
const LONGEST_V4_HEADER: usize = 60;
const UDP_HEADER: usize = 8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
/// As much of a packet as is looked at.
const LONGEST: usize = LONGEST_V4_HEADER + UDP_HEADER + probe::LEN;
/// More fragments, or an offset: bits of IPv4's bytes 6 and 7.
const FRAGMENT: u32 = 0x3fff;

/// Listens until dropped.
pub struct Ear {
    sockets: Vec<Arc<Socket>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Ear {
    /// `deliver` gets each probe for UDP port `port`, and where it came from; it must not wait. To be called within a tokio
    /// runtime. Where the kernel refuses, this hears nothing.
    pub fn open(port: u16, deliver: impl Fn(SocketAddr, &[u8]) + Clone + Send + 'static) -> Self {
        let mut ear = Self { sockets: Vec::new(), tasks: Vec::new() };
        for (protocol, filter) in [(libc::ETH_P_IP, filter_v4(port)), (libc::ETH_P_IPV6, filter_v6(port))] {
            match ear.listen(protocol, &filter, port, deliver.clone()) {
                Ok(()) => {}
                Err(error) => debug!(%error, "a firewall on this machine is not heard behind: no packet socket"),
            }
        }
        ear
    }

    fn listen(
        &mut self,
        protocol: i32,
        filter: &[SockFilter],
        port: u16,
        deliver: impl Fn(SocketAddr, &[u8]) + Send + 'static,
    ) -> io::Result<()> {
        // In network order, as packet(7) wants it.
        let protocol = Protocol::from(i32::from((protocol as u16).to_be()));
        let socket = Arc::new(Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(protocol))?);
        // What came before it is sorted out by `probe_in`.
        socket.attach_filter(filter)?;
        let waiting = sys::watch_socket(socket.clone())?;
        self.sockets.push(socket);
        self.tasks.push(tokio::spawn(async move {
            if let Err(error) = hear(&waiting, port, deliver).await {
                debug!(%error, "a packet socket");
            }
        }));
        Ok(())
    }
}

impl Drop for Ear {
    /// The kernel lets no packet socket go before every processor has let go of it, which takes some 10 ms: not on this thread.
    fn drop(&mut self) {
        let (sockets, tasks) = (std::mem::take(&mut self.sockets), std::mem::take(&mut self.tasks));
        let Ok(runtime) = Handle::try_current() else { return };
        for task in &tasks {
            task.abort();
        }
        runtime.spawn(async move {
            for task in tasks {
                let _ = task.await;
            }
            let _ = tokio::task::spawn_blocking(|| drop(sockets)).await;
        });
    }
}

/// Errors: the runtime's end.
async fn hear(socket: &AsyncFd<Arc<Socket>>, port: u16, deliver: impl Fn(SocketAddr, &[u8])) -> io::Result<()> {
    let mut packet = [0; LONGEST];
    loop {
        let mut guard = socket.readable().await?;
        tokio::time::sleep(AFTER).await;
        for _ in 0..BATCH {
            match guard.try_io(|socket| sys::read(socket.get_ref().as_fd(), &mut packet)) {
                Ok(Ok(len)) => {
                    if let Some((from, probe)) = probe_in(&packet[..len], port) {
                        deliver(from, probe);
                    }
                }
                // A device went down: packet(7) says so once.
                Ok(Err(error)) => debug!(%error, "a packet socket"),
                Err(_would_wait) => break,
            }
        }
    }
}

/// The probe that an IP packet to UDP port `port` carries, and where it came from. Several of them, which the kernel had merged
/// before anybody saw them, give the first.
fn probe_in(packet: &[u8], port: u16) -> Option<(SocketAddr, &[u8])> {
    let (source, protocol, udp): (IpAddr, _, _) = match packet.first()? >> 4 {
        4 => {
            let header = packet.first_chunk::<V4_HEADER>()?;
            let source: [u8; 4] = header[12..16].try_into().ok()?;
            if u32::from(u16::from_be_bytes([header[6], header[7]])) & FRAGMENT != 0 {
                return None;
            }
            (source.into(), header[9], packet.get(usize::from(header[0] & 0x0f) * 4..)?)
        }
        6 => {
            let (header, rest) = packet.split_first_chunk::<V6_HEADER>()?;
            let source: [u8; 16] = header[8..24].try_into().ok()?;
            (source.into(), header[6], rest)
        }
        _ => return None,
    };
    let (header, payload) = udp.split_first_chunk::<UDP_HEADER>()?;
    let [from, to, len] = [0, 2, 4].map(|at| u16::from_be_bytes([header[at], header[at + 1]]));
    let len = usize::from(len).checked_sub(UDP_HEADER)?;
    let probe = payload.get(..probe::LEN).filter(|_| len % probe::LEN == 0)?;
    let is_probe = protocol == UDP && to == port && Kind::of(probe) == Some(Kind::Dudp(Dudp::Ack));
    is_probe.then_some((SocketAddr::new(source, from), probe))
}

/// One step of a filter: what it loads, and what that must be.
enum Check {
    /// So many bytes (1, 2 or 4) at an offset are this value.
    Is(u8, u32, u32),
    /// Two bytes at an offset have none of these bits.
    Clear(u32, u32),
    /// As [`Check::Is`], the offset being one behind an IPv4 header.
    IsBehind(u8, u32, u32),
}

fn filter_v4(port: u16) -> Vec<SockFilter> {
    filter(&[
        Check::Is(1, 9, UDP.into()),
        Check::Clear(6, FRAGMENT),
        Check::IsBehind(2, 2, port.into()),
        Check::IsBehind(4, UDP_HEADER as u32, u32::from_be_bytes(MAGIC)),
        Check::IsBehind(1, UDP_HEADER as u32 + 4, Dudp::Ack as u32),
    ])
}

fn filter_v6(port: u16) -> Vec<SockFilter> {
    let udp = V6_HEADER as u32;
    filter(&[
        Check::Is(1, 6, UDP.into()),
        Check::Is(2, udp + 2, port.into()),
        Check::Is(4, udp + UDP_HEADER as u32, u32::from_be_bytes(MAGIC)),
        Check::Is(1, udp + UDP_HEADER as u32 + 4, Dudp::Ack as u32),
    ])
}

/// The kernel's program (linux/filter.h) that lets a packet pass which is for this machine and passes all of `checks`.
fn filter(checks: &[Check]) -> Vec<SockFilter> {
    let statement = |code: u32, k: u32| SockFilter::new(code as u16, 0, 0, k);
    let load = |bytes: u8, mode: u32, at: u32| {
        let size = match bytes {
            1 => libc::BPF_B,
            2 => libc::BPF_H,
            _ => libc::BPF_W,
        };
        statement(libc::BPF_LD | size | mode, at)
    };
    let for_us = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    let mut program = vec![
        // X: the length of an IPv4 header. Of other packets it is some number that nobody asks for.
        statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0),
        load(1, libc::BPF_ABS, for_us),
    ];
    // Behind each load stand its test and two more instructions a check that follows; then take and leave.
    let leave = |left: usize| (2 * left + 1) as u8;
    let equal = |value: u32, left: usize| {
        SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, leave(left), value)
    };
    program.push(equal(u32::from(libc::PACKET_HOST), checks.len()));
    for (nth, check) in checks.iter().enumerate() {
        let left = checks.len() - 1 - nth;
        match *check {
            Check::Is(bytes, at, value) => program.extend([load(bytes, libc::BPF_ABS, at), equal(value, left)]),
            Check::IsBehind(bytes, at, value) => program.extend([load(bytes, libc::BPF_IND, at), equal(value, left)]),
            Check::Clear(at, bits) => {
                let any = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
                program.extend([load(2, libc::BPF_ABS, at), SockFilter::new(any, leave(left), 0, bits)]);
            }
        }
    }
    program.extend([statement(libc::BPF_RET | libc::BPF_K, LONGEST as u32), statement(libc::BPF_RET | libc::BPF_K, 0)]);
    program
}

#[cfg(test)]
mod tests;
