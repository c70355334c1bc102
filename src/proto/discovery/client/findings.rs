//! What discovery knows, for people: `nat` of `status --json` and `netcheck --json`.

use super::{Client, FILTERED_AFTER};
use crate::proto::discovery::Reply;
use crate::proto::discovery::survey::{Outcome, Query, Survey};
use crate::proto::nat::evidence::{self, Sure};
use crate::proto::nat::{self, Allocation, Filtering, Mapping, Observation};
use crate::proto::{Instant, SocketId, snapshot};

/// Two requests in vain say that a filter is closed: [`evidence`].
const ENOUGH_SILENCE: u32 = 2;

impl Client {
    /// Whether more waiting would tell no more of the NAT.
    pub fn is_settled(&self, now: Instant) -> bool {
        let told = |survey: &Survey| {
            let waits = |query: &&_| self.unanswered(survey, query, now) < ENOUGH_SILENCE;
            let mut waiting = survey.queries().iter().filter(|query| query.outcome == Outcome::Waiting).filter(waits);
            waiting.next().is_none() || survey.first_answer().is_none()
        };
        let ready = |survey: &Survey| survey.is_ready(now);
        self.is_ready(now, SocketId::MAIN_V4) && self.scouts.iter().all(ready) && self.filter.as_ref().is_none_or(told)
    }

    fn unanswered(&self, survey: &Survey, query: &Query, now: Instant) -> u32 {
        query.unanswered(now, survey.first_round_trip() + FILTERED_AFTER)
    }

    /// How many requests for an answer from another port, and from another address, were not answered; `None`: the server has no
    /// other one, or was not asked.
    fn silence(&self, now: Instant) -> (Option<u32>, Option<u32>) {
        let of = |reply| {
            let filter = self.filter.as_ref()?;
            let query = filter.queries().iter().find(|query| query.reply == reply)?;
            let elsewhere = !matches!(query.outcome, Outcome::Answered { reply: Reply::Same, .. });
            elsewhere.then(|| self.unanswered(filter, query, now))
        };
        (of(Reply::OtherPort), of(Reply::OtherAddress))
    }

    /// What every socket saw: of mappings made for a survey, and of all.
    fn looks(&self) -> (Vec<Observation>, Vec<Observation>) {
        let surveys = || self.main.iter().chain(&self.filter).chain(&self.scouts);
        (surveys().flat_map(Survey::looks).collect(), surveys().flat_map(Survey::observations).collect())
    }

    /// What is known of the NAT, with the observations behind it, and how sure each property is.
    pub fn nat(&self, now: Instant) -> snapshot::Nat {
        let (fresh, seen) = self.looks();
        let filtering = self.filtering(now);
        let mapping = self.nat.mapping;
        let no_nat = mapping == Mapping::None;
        // One public port for all: what a NAT gives new sockets is seen from those alone, for the main one's may be older.
        let cone = mapping == Mapping::EndpointIndependent && self.nat.allocation != Allocation::Preserving;
        let looks: Vec<_> = fresh.into_iter().filter(|look| !cone || look.local_port != self.main_port).collect();
        let allocation = if cone { evidence::across(&looks) } else { self.nat.allocation };
        let offset = evidence::offset(&looks).filter(|_| !no_nat);
        // Ports that follow the local ones are neither a sequence nor random.
        let allocation = if offset.is_some() { Allocation::Unknown } else { allocation };
        let parity = evidence::parity(allocation, &looks).filter(|_| offset.is_none() && !no_nat);
        let paired = evidence::paired(&seen).filter(|_| !no_nat);
        let random: Vec<u16> = if self.random.is_empty() {
            looks.iter().map(|look| look.public.port()).collect()
        } else {
            self.random.iter().copied().collect()
        };
        let is_random = allocation == Allocation::Random;
        let ports = if is_random { nat::block(&random) } else { self.range() };
        let allocated = evidence::of_allocation(allocation, mapping, &looks);
        // A block is no surer than that there is no sequence.
        let block = if is_random && ports.is_some() { evidence::of_block(&random) } else { None };
        let block = block.zip(allocated).map(|(block, random)| Sure { chance: block.chance * random.chance, ..block });
        let sure =
            |sure: Option<Sure>| sure.map(|sure| snapshot::Sure { chance: sure.chance, observations: sure.looks });
        let rate = self.counter.rate();
        snapshot::Nat {
            mapping: behaviour(mapping),
            filtering: match filtering {
                Filtering::EndpointIndependent if no_nat => snapshot::Behaviour::None,
                Filtering::EndpointIndependent => snapshot::Behaviour::EndpointIndependent,
                Filtering::AddressDependent => snapshot::Behaviour::AddressDependent,
                Filtering::AddressAndPortDependent => snapshot::Behaviour::AddressAndPortDependent,
                Filtering::Unknown => snapshot::Behaviour::Unknown,
            },
            allocation: match allocation {
                Allocation::Preserving => snapshot::Allocation::Preserving,
                Allocation::SecondPriority { .. } | Allocation::Sequential { .. } => snapshot::Allocation::Sequential,
                Allocation::Random => snapshot::Allocation::Random,
                Allocation::Unknown => snapshot::Allocation::Unknown,
            },
            delta: allocation.step(),
            cross_traffic_per_s: rate.map(|rate| rate.per_s),
            cross_traffic_error_per_s: rate.map(|rate| rate.error),
            ports,
            parity_kept: parity.map(|(kept, _)| kept),
            port_offset: offset.map(|(offset, _)| offset),
            paired: paired.map(|(paired, _)| paired),
            public: self.nat.public.clone(),
            mapping_lifetime_s: None,
            keepalive_s: None,
            port_mapping: snapshot::PortMapping::None,
            second_priority: (mapping != Mapping::Unknown)
                .then_some(matches!(allocation, Allocation::SecondPriority { .. })),
            low_ttl: None,
            confidence: snapshot::Confidence {
                mapping: sure(evidence::of_mapping(mapping, &seen)),
                filtering: sure(evidence::of_filtering(filtering, self.silence(now))),
                allocation: sure(allocated),
                ports: sure(block),
                parity_kept: sure(parity.map(|(_, sure)| sure)),
                port_offset: sure(offset.map(|(_, sure)| sure)),
                paired: sure(paired.map(|(_, sure)| sure)),
            },
            observations: self.asked(now),
        }
    }

    fn asked(&self, now: Instant) -> Vec<snapshot::Observation> {
        let surveys = self.main.iter().chain(&self.filter).chain(&self.scouts);
        let questions = surveys.flat_map(|survey| survey.queries().iter().map(move |query| (survey, query)));
        let known = questions.filter(|(survey, query)| match (query.outcome, query.reply) {
            (Outcome::Waiting, Reply::Same) => false,
            // Where the filter is closed, the answer is that there is none.
            (Outcome::Waiting, _) => self.unanswered(survey, query, now) > 0,
            _ => true,
        });
        let shown = known.map(|(survey, query)| {
            let (public, rtt) = match query.outcome {
                Outcome::Answered { public, rtt, .. } => (Some(public), Some(rtt)),
                Outcome::Waiting | Outcome::Silent => (None, None),
            };
            let purpose = match (query.reply, query.outcome) {
                (Reply::Same, _) => "mapping",
                (_, Outcome::Answered { reply: Reply::Same, .. }) => {
                    "filtering: this server has no other socket to answer from"
                }
                (Reply::ToPort(_), _) => "lifetime: an answer to another of our ports",
                (Reply::OtherPort, _) => "filtering: an answer from another port",
                (Reply::OtherAddress, _) => "filtering: an answer from another address",
            };
            snapshot::Observation {
                server: query.target.address,
                local_port: survey.local_port,
                public,
                rtt_ms: rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                purpose: purpose.to_owned(),
            }
        });
        shown.collect()
    }
}

fn behaviour(mapping: Mapping) -> snapshot::Behaviour {
    match mapping {
        Mapping::None => snapshot::Behaviour::None,
        Mapping::EndpointIndependent => snapshot::Behaviour::EndpointIndependent,
        Mapping::AddressDependent => snapshot::Behaviour::AddressDependent,
        Mapping::AddressAndPortDependent => snapshot::Behaviour::AddressAndPortDependent,
        Mapping::Unknown => snapshot::Behaviour::Unknown,
    }
}
