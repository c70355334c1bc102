//! The thin shell's I/O: everything that touches the kernel, the clock or another host's daemon.
//!
//! ```text
//! sys       the one module with `unsafe`: system calls that std, tokio and socket2 lack
//! clock     the only clock
//! cpu       what the processor can do
//! udp       all UDP sockets behind one descriptor, in batches
//! tun       the TUN device, in batches
//! wake      ending a packet thread's wait
//! schedule  how the kernel shares the processors with the packet threads
//! links     addresses, routes and rules of our device; addresses and gateway of this machine
//! netmon    the kernel's word that addresses, links or routes changed
//! overhear  probes that this machine's own firewall may keep from our socket
//! resolve   host names
//! portmap   UPnP, PCP and NAT-PMP
//! ```
//!
//! Nothing in here decides anything about paths or peers: the core ([`crate::proto`]) does.

pub mod clock;
pub mod cpu;
pub mod links;
pub mod netmon;
pub mod overhear;
pub mod portmap;
pub mod resolve;
pub mod schedule;
mod sys; // private: nothing else may do what it does
pub mod tun;
pub mod udp;
pub mod wake;
