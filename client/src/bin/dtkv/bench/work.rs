//! What is written and read: keys, the value, and the dice.

use crate::args::BenchArgs;
use rand::RngExt as _;

/// What all producers draw from.
pub struct Work {
    pub keys: Vec<Box<[u8]>>,
    pub value: Box<[u8]>,
    groups: usize,
    read_percent: u32,
}

impl Work {
    pub fn new(groups: usize, args: &BenchArgs) -> Work {
        let key = |n| format!("{}.key{n}", super::DIRECTORY).into_bytes().into_boxed_slice();
        let mut value = vec![0; args.value_bytes as usize].into_boxed_slice();
        rand::rng().fill(&mut value[..]);
        Work { keys: (0..args.keys).map(key).collect(), value, groups, read_percent: args.read_percent() }
    }

    /// Throws the dice for one operation.
    pub fn draw(&self, dice: &mut Dice) -> Drawn {
        let key = dice.below(self.keys.len());
        let group = if self.groups == 1 { 0 } else { dice.below(self.groups) };
        let is_read = match self.read_percent {
            0 => false,
            100 => true,
            percent => dice.below(100) < percent as usize,
        };
        Drawn { key, group, is_read }
    }
}

/// One operation to be done.
#[derive(Clone, Copy)]
pub struct Drawn {
    /// Position in the list of keys.
    pub key: usize,
    /// Position in the list of groups.
    pub group: usize,
    pub is_read: bool,
}

/// A xorshift* generator: good enough to choose keys, and a few cycles a number.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Dice {
        Dice(rand::rng().random::<u64>() | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        ((drawn * bound as u64) >> 32) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::tests::args;

    #[test]
    fn every_key_and_group_is_drawn_and_the_mix_holds() {
        let work = Work::new(3, &args(&["--mix", "25", "--keys", "10"]));
        let mut dice = Dice::new();
        let (mut keys, mut groups, mut reads) = ([0; 10], [0; 3], 0);
        for _ in 0..10_000 {
            let drawn = work.draw(&mut dice);
            keys[drawn.key] += 1;
            groups[drawn.group] += 1;
            reads += usize::from(drawn.is_read);
        }
        assert!(keys.iter().all(|n| (800..1200).contains(n)), "{keys:?}");
        assert!(groups.iter().all(|n| (3000..3700).contains(n)), "{groups:?}");
        assert!((2200..2800).contains(&reads), "{reads}");
    }
}
