//! Host names to addresses, through the system's resolver, so that `/etc/hosts` and the like count.

use std::net::IpAddr;
use std::time::Duration;

/// glibc gives up on one name after 2 tries of 5 s by default; a second server may take as long, but nobody waits for that.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A name with more addresses than this is a mistake or an attack: each becomes a candidate that costs packets.
pub const MAX_ADDRESSES: usize = 8;

/// The addresses of `name`, IPv4-mapped ones unmapped, each once, at most [`MAX_ADDRESSES`]; none where it has none, or the
/// resolver failed or took longer than 10 s.
pub async fn resolve(name: &str) -> Vec<IpAddr> {
    // The resolver wants a port; which one does not matter to it.
    let found = match tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((name, 0))).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            tracing::debug!(name, %error, "the name does not resolve");
            return Vec::new();
        }
        Err(_) => {
            tracing::debug!(name, "the resolver did not answer in time");
            return Vec::new();
        }
    };
    bounded(found.map(|address| address.ip()))
}

fn bounded(found: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in found.map(|address| address.to_canonical()) {
        if addresses.len() == MAX_ADDRESSES {
            break;
        }
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn resolves_localhost_and_gives_nothing_for_a_name_that_is_none() {
        assert!(resolve("localhost").await.iter().any(IpAddr::is_loopback));
        assert_eq!(resolve("a name with spaces").await, Vec::<IpAddr>::new());
    }

    #[test]
    fn keeps_each_address_once_and_no_more_than_eight() {
        let many = (0..40u8).map(|i| IpAddr::from([192, 0, 2, i / 2]));
        let kept = bounded(many);
        assert_eq!(kept.len(), MAX_ADDRESSES);
        assert_eq!(kept[1], IpAddr::from([192, 0, 2, 1]));
        let mapped: IpAddr = "::ffff:192.0.2.7".parse().expect("an address");
        assert_eq!(bounded([mapped].into_iter()), vec![IpAddr::from([192, 0, 2, 7])]);
    }
}
