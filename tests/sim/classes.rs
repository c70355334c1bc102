//! The NATs that an office may be behind: those of the patent's paragraphs [0025] to [0029], and what Linux does.

use crate::dice::Dice;
use crate::nat::{Allocation, Profile, Scope};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    None,
    FullCone,
    AddressRestricted,
    PortRestricted,
    Fig4A,
    Fig4BStep1,
    Fig4BStep4,
    Fig4BStepMinus1,
    AddressDependent,
    Masquerade,
    ConeInCone,
    SymmetricInCone,
    ConeInSymmetric,
    /// Not in the list, but what `snat … numgen` without an input filter does.
    Fig4BPoisonable,
}

impl Class {
    pub const ALL: [Class; 14] = [
        Class::None,
        Class::FullCone,
        Class::AddressRestricted,
        Class::PortRestricted,
        Class::Fig4A,
        Class::Fig4BStep1,
        Class::Fig4BStep4,
        Class::Fig4BStepMinus1,
        Class::AddressDependent,
        Class::Masquerade,
        Class::ConeInCone,
        Class::SymmetricInCone,
        Class::ConeInSymmetric,
        Class::Fig4BPoisonable,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Class::None => "none",
            Class::FullCone => "full cone",
            Class::AddressRestricted => "address-restricted",
            Class::PortRestricted => "port-restricted",
            Class::Fig4A => "4A",
            Class::Fig4BStep1 => "4B +1",
            Class::Fig4BStep4 => "4B +4",
            Class::Fig4BStepMinus1 => "4B -1",
            Class::AddressDependent => "ADM sequential",
            Class::Masquerade => "masquerade",
            Class::ConeInCone => "cone in cone",
            Class::SymmetricInCone => "symmetric in cone",
            Class::ConeInSymmetric => "cone in symmetric",
            Class::Fig4BPoisonable => "4B +1 poisonable",
        }
    }

    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    /// Whether the outside port depends on the remote, in a way that a peer meets. Masquerade does only where it is poisoned.
    pub fn is_symmetric(self) -> bool {
        match self {
            Class::None
            | Class::FullCone
            | Class::AddressRestricted
            | Class::PortRestricted
            | Class::Masquerade
            | Class::ConeInCone => false,
            Class::Fig4A
            | Class::Fig4BStep1
            | Class::Fig4BStep4
            | Class::Fig4BStepMinus1
            | Class::AddressDependent
            | Class::SymmetricInCone
            | Class::ConeInSymmetric
            | Class::Fig4BPoisonable => true,
        }
    }

    /// The NATs in a row, the innermost first. `cross_traffic`: new mappings a second by others at the outermost.
    pub fn profiles(self, cross_traffic: f64, dice: &mut Dice) -> Vec<Profile> {
        use Scope::{Address, AddressAndPort, Endpoint};
        let symmetric = |step: i32| Profile::new(AddressAndPort, AddressAndPort, Allocation::Sequential { step });
        // How a cone numbers its ports must not matter.
        let cone = |filtering: Scope, dice: &mut Dice| {
            let ways = [Allocation::Preserving, Allocation::Random, Allocation::Sequential { step: 1 }];
            Profile::new(Endpoint, filtering, ways[usize::try_from(dice.between(0, 2)).expect("is small")])
        };
        let mut profiles = match self {
            Class::None => Vec::new(),
            Class::FullCone => vec![cone(Endpoint, dice)],
            Class::AddressRestricted => vec![cone(Address, dice)],
            Class::PortRestricted => vec![cone(AddressAndPort, dice)],
            Class::Fig4A => vec![Profile { allocation: Allocation::SecondPriority { step: 1 }, ..symmetric(1) }],
            Class::Fig4BStep1 => vec![symmetric(1)],
            Class::Fig4BStep4 => vec![symmetric(4)],
            Class::Fig4BStepMinus1 => vec![symmetric(-1)],
            Class::AddressDependent => vec![Profile { mapping: Address, ..symmetric(1) }],
            Class::Masquerade => vec![Profile::masquerade()],
            Class::ConeInCone => vec![cone(AddressAndPort, dice), cone(AddressAndPort, dice)],
            // An outer NAT that numbers by dice would make the whole of them random, which no sequence is left in.
            Class::SymmetricInCone => {
                let ways = [Allocation::Preserving, Allocation::Sequential { step: 1 }];
                let way = ways[usize::try_from(dice.between(0, 1)).expect("is small")];
                vec![symmetric(1), Profile::new(Endpoint, AddressAndPort, way)]
            }
            Class::ConeInSymmetric => vec![cone(AddressAndPort, dice), symmetric(1)],
            Class::Fig4BPoisonable => vec![Profile { poisonable: true, ..symmetric(1) }],
        };
        if let Some(outermost) = profiles.last_mut() {
            outermost.cross_traffic = cross_traffic;
        }
        profiles
    }
}
