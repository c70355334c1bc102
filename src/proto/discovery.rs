//! Discovery: DUDP_START asks a server "from where do you see me", DUDP_PUBINFO answers (patent \[0058\] to \[0061\]).
//!
//! ```text
//! DUDP_START, 40 bytes
//! 0                8                 16      17         19                  40
//! | shared header  | transaction (8) | reply | port (2) | zeroes, unread …  |
//!
//! DUDP_PUBINFO, 40 bytes
//! 0                8                 16      17                  36         38       40
//! | shared header  | transaction (8) | reply | public address    | port (2) | zeroes |
//! ```
//!
//! `reply` asks from where the answer shall come, and in the answer says from where it does: 0 the address and port that were
//! asked, 1 another port of that address, 2 another address of the server's. 3 asks for an answer from where was asked, but to
//! `port` (else 0) of the address that asks: how a member learns whether its NAT still remembers that port ([`lifetime`]). It goes
//! to nobody who did not ask. A server that has no such socket does not
//! answer a request for it from elsewhere: it answers from where it was asked and says 0, so that silence always means a
//! filter (or loss).
//!
//! The public address is 19 bytes as [`super::codec`] has them, XORed with the transaction (repeated), because some NATs
//! rewrite what looks like an address in a payload. Both messages have the same length: nobody is amplified. Neither is
//! secret or signed; who can't read the path can't guess the transaction.

pub mod client;
pub mod lifetime;
pub mod server;
pub mod survey;

use std::net::SocketAddr;

use super::codec::{Reader, Writer};
use super::wire::{Dudp, HEADER_LEN};

/// Length of either message.
pub const MESSAGE_LEN: usize = 40;

pub type Transaction = [u8; 8];

/// From where an answer shall come, or does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reply {
    Same,
    OtherPort,
    OtherAddress,
    /// From where was asked, to this port of who asks.
    ToPort(u16),
}

impl Reply {
    fn encode(self) -> (u8, u16) {
        match self {
            Self::Same => (0, 0),
            Self::OtherPort => (1, 0),
            Self::OtherAddress => (2, 0),
            Self::ToPort(port) => (3, port),
        }
    }

    fn decode(byte: u8, port: u16) -> Option<Self> {
        Some(match byte {
            0 => Self::Same,
            1 => Self::OtherPort,
            2 => Self::OtherAddress,
            3 if port != 0 => Self::ToPort(port),
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Start {
    pub transaction: Transaction,
    pub reply: Reply,
}

impl Start {
    pub fn encode(&self) -> Vec<u8> {
        let (reply, port) = self.reply.encode();
        Writer::with(&Dudp::Start.header()).bytes(&self.transaction).u8(reply).u16(port).pad_to(MESSAGE_LEN).finish()
    }

    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() != MESSAGE_LEN {
            return None;
        }
        let mut reader = Reader::new(&datagram[HEADER_LEN..]);
        Some(Self { transaction: reader.array()?, reply: Reply::decode(reader.u8()?, reader.u16()?)? })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PubInfo {
    pub transaction: Transaction,
    pub reply: Reply,
    pub public: SocketAddr,
}

impl PubInfo {
    pub fn encode(&self) -> Vec<u8> {
        let mut address = Writer::default().address(self.public).finish();
        mask(&mut address, &self.transaction);
        let (reply, port) = self.reply.encode();
        Writer::with(&Dudp::PubInfo.header())
            .bytes(&self.transaction)
            .u8(reply)
            .bytes(&address)
            .u16(port)
            .pad_to(MESSAGE_LEN)
            .finish()
    }

    pub fn parse(datagram: &[u8]) -> Option<Self> {
        if datagram.len() != MESSAGE_LEN {
            return None;
        }
        let mut reader = Reader::new(&datagram[HEADER_LEN..]);
        let transaction = reader.array()?;
        let reply = reader.u8()?;
        let mut address: [u8; 19] = reader.array()?;
        let reply = Reply::decode(reply, reader.u16()?)?;
        mask(&mut address, &transaction);
        Some(Self { transaction, reply, public: Reader::new(&address).address()? })
    }
}

fn mask(bytes: &mut [u8], transaction: &Transaction) {
    for (byte, mask) in bytes.iter_mut().zip(transaction.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_messages_read_back_as_they_were_written_and_have_one_length() {
        let start = Start { transaction: *b"transact", reply: Reply::ToPort(30001) };
        assert_eq!(Start::parse(&start.encode()), Some(start));
        let start = Start { transaction: *b"transact", reply: Reply::OtherPort };
        assert_eq!(Start::parse(&start.encode()), Some(start));
        for public in ["203.0.113.7:4275", "[2001:db8::7]:4275"] {
            let info =
                PubInfo { transaction: *b"transact", reply: Reply::Same, public: public.parse().expect("address") };
            assert_eq!(PubInfo::parse(&info.encode()), Some(info));
            assert_eq!(info.encode().len(), start.encode().len());
        }
    }

    #[test]
    fn a_message_of_another_length_is_refused() {
        let bytes = Start { transaction: [0; 8], reply: Reply::Same }.encode();
        assert_eq!(Start::parse(&bytes[..39]), None);
        assert_eq!(Start::parse(&[bytes.as_slice(), &[0]].concat()), None);
    }
}
