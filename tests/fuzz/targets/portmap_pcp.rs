//! PCP and NAT-PMP answers: our own probes', and, from a real socket on the loopback, those that crab_nat reads. The first
//! byte says whether to ask by PCP, and whether the router tells our nonce.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::sync::OnceLock;
use std::time::Duration;

use crab_nat::pcp::BaseMapRequest;
use crab_nat::{GATEWAY_PORT, InternetProtocol, PortMappingOptions, TimeoutConfig, natpmp, pcp};
use p2ptund::io::portmap::answers::{announced_epoch, natpmp_address, pcp_epoch};
use tokio::net::UdpSocket;
use tokio::runtime::{Builder, Runtime};

use super::input::Input;

const PATIENCE: TimeoutConfig =
    TimeoutConfig { initial_timeout: Duration::from_millis(200), max_retries: 0, max_retry_timeout: None };
/// Where a nonce stands, in a request and an answer (RFC 6887 section 11.1).
const NONCE: std::ops::Range<usize> = 24..36;
const PORT: NonZeroU16 = NonZeroU16::new(4275).expect("is not 0");

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let first = input.u8();
    let answer = data.get(1..).unwrap_or_default();
    let address = natpmp_address(answer);
    let epoch = pcp_epoch(answer);
    assert!(address.is_none() || epoch.is_none(), "an answer is of one protocol");
    assert!(announced_epoch(answer).is_none_or(|told| Some(told) == address.map(|a| a.epoch).or(epoch)));
    runtime().block_on(ask(first, answer));
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_current_thread().enable_all().build().expect("a runtime"))
}

/// An address of this process alone: every router has the same port.
fn router() -> Ipv4Addr {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, 1 + high % 250, middle, low)
}

async fn ask(first: u8, answer: &[u8]) {
    let socket = UdpSocket::bind((router(), GATEWAY_PORT)).await.expect("nobody else is there");
    let by_pcp = first & 1 != 0;
    let serve = async {
        let mut request = [0; 1100];
        let (len, from) = socket.recv_from(&mut request).await.expect("a request");
        let mut answer = answer.to_vec();
        if by_pcp
            && first & 2 != 0
            && let (Some(told), Some(nonce)) = (answer.get_mut(NONCE), request[..len].get(NONCE))
        {
            told.copy_from_slice(nonce);
        }
        socket.send_to(&answer, from).await.expect("can be answered");
    };
    let options =
        PortMappingOptions { external_port: Some(PORT), lifetime_seconds: Some(60), timeout_config: Some(PATIENCE) };
    let map = async {
        let mapped = if by_pcp {
            let base = BaseMapRequest::new(router().into(), Ipv4Addr::LOCALHOST.into(), InternetProtocol::Udp, PORT);
            pcp::port_mapping(base, None, None, options).await.ok()
        } else {
            natpmp::port_mapping(router().into(), InternetProtocol::Udp, PORT, options).await.ok()
        };
        if let Some(mapped) = mapped {
            assert_eq!(mapped.internal_port(), PORT, "it is ours");
        }
    };
    tokio::join!(serve, map);
}
