//! Python's `random.Random`, as far as the language detector uses it: the Mersenne Twister (Matsumoto and Nishimura 1998) seeded
//! by a number, `gauss`, and `choice`.

const N: usize = 624;
const M: usize = 397;

pub(super) struct Random {
    state: [u32; N],
    at: usize,
    /// `gauss` generates two numbers at a time; this is the second.
    gauss_next: Option<f64>,
}

impl Random {
    /// Python's `random.seed(seed)`.
    pub(super) fn seeded(seed: u32) -> Random {
        // This is init_genrand(19650218) followed by init_by_array([seed]).
        let mut state = [0u32; N];
        state[0] = 19650218;
        for i in 1..N {
            state[i] = 1812433253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
        }
        let mut i = 1;
        for _ in 0..N {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1664525);
            // The key has a single word, whose index is 0.
            state[i] = (state[i] ^ mixed).wrapping_add(seed);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 0..N - 1 {
            let mixed = (state[i - 1] ^ (state[i - 1] >> 30)).wrapping_mul(1566083941);
            state[i] = (state[i] ^ mixed).wrapping_sub(i as u32);
            i += 1;
            if i >= N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Random { state, at: N, gauss_next: None }
    }

    fn next(&mut self) -> u32 {
        if self.at >= N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
            }
            self.at = 0;
        }
        let mut y = self.state[self.at];
        self.at += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Python's `random()`, in 0..1.
    fn share(&mut self) -> f64 {
        let (a, b) = (self.next() >> 5, self.next() >> 6);
        (f64::from(a) * 67108864.0 + f64::from(b)) / 9007199254740992.0
    }

    /// Python's `gauss(0, 1)`.
    pub(super) fn gauss(&mut self) -> f64 {
        if let Some(next) = self.gauss_next.take() {
            return next;
        }
        let angle = self.share() * std::f64::consts::TAU;
        let radius = (-2.0 * (1.0 - self.share()).ln()).sqrt();
        self.gauss_next = Some(angle.sin() * radius);
        angle.cos() * radius
    }

    /// The index that Python's `choice` draws from `n` elements; `n` is above 0 and below 2^32.
    pub(super) fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.next() >> (32 - bits)) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `r = random.Random(0); [r.gauss(0, 1) for _ in range(3)], [r.choice(range(10)) for _ in range(8)], r.choice(range(5000))`
    #[test]
    fn draws_are_those_of_python() {
        let mut random = Random::seeded(0);
        let gauss: Vec<f64> = (0..3).map(|_| random.gauss()).collect();
        let expected = [0.9417154046806644, -1.3965781047011498, -0.6797144480784211];
        assert!(gauss.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-14), "{gauss:?}");
        let chosen: Vec<usize> = (0..8).map(|_| random.below(10)).collect();
        assert_eq!((chosen, random.below(5000)), (vec![8, 7, 6, 4, 7, 5, 9, 3], 4134));
    }
}
