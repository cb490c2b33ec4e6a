//! Which layers go to which device, computed before anything is loaded.

/// How many layers are wanted on devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// As many as fit.
    Auto,
    /// So many, the last ones of the model.
    Exactly(usize),
}

/// Layers on devices: the last ones of the model, each device having some that follow each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// How many layers each device has, in the devices' order. The output matrix counts as the model's last layer.
    pub n_layers: Vec<usize>,
    /// What they take on each, in bytes.
    pub bytes: Vec<u64>,
}

impl Placement {
    /// Layers on devices, in all.
    pub fn n_placed(&self) -> usize {
        self.n_layers.iter().sum()
    }
}

/// Places as many of the last of `layers` as are wanted and fit: `layers` in bytes, the output matrix behind them; `rooms` in bytes,
/// what each device has for them. Devices take layers in proportion to their room, so that boards which work together fill evenly.
pub fn place(layers: &[u64], rooms: &[u64], wanted: Wanted) -> Placement {
    let most = match wanted {
        Wanted::Auto => layers.len(),
        Wanted::Exactly(n) => n.min(layers.len()),
    };
    (1..=most)
        .rev()
        .find_map(|n| split(&layers[layers.len() - n..], rooms))
        .unwrap_or_else(|| Placement { n_layers: vec![0; rooms.len()], bytes: vec![0; rooms.len()] })
}

/// All of `layers` on the devices; `None` if some do not fit.
fn split(layers: &[u64], rooms: &[u64]) -> Option<Placement> {
    let all = rooms.iter().fold(0u128, |sum, room| sum + u128::from(*room));
    let (mut placement, mut rest, mut before) = (Placement::default(), layers, 0u128);
    for room in rooms {
        before += u128::from(*room);
        // Where this device's part ends: by its share of all room, rounded, and as far as it fits.
        let n_before = layers.len() - rest.len();
        let end = (2 * before * layers.len() as u128 + all).checked_div(2 * all).unwrap_or(0) as usize;
        let (mut n, mut bytes) = (0, 0u64);
        for layer in &rest[..end.saturating_sub(n_before).min(rest.len())] {
            if bytes.saturating_add(*layer) > *room {
                break;
            }
            (n, bytes) = (n + 1, bytes + layer);
        }
        rest = &rest[n..];
        placement.n_layers.push(n);
        placement.bytes.push(bytes);
    }
    rest.is_empty().then_some(placement)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(layers: &[u64], rooms: &[u64], wanted: Wanted, n_layers: &[usize], bytes: &[u64]) {
        let expect = Placement { n_layers: n_layers.to_vec(), bytes: bytes.to_vec() };
        assert_eq!(place(layers, rooms, wanted), expect, "{layers:?} on {rooms:?}, {wanted:?}");
    }

    #[test]
    fn one_device() {
        use Wanted::*;
        check(&[10, 10, 10, 30], &[100], Auto, &[4], &[60]);
        check(&[10, 10, 10, 30], &[60], Auto, &[4], &[60]);
        // The last ones: the output matrix first of all.
        check(&[10, 10, 10, 30], &[59], Auto, &[3], &[50]);
        check(&[10, 10, 10, 30], &[29], Auto, &[0], &[0]);
        check(&[10, 10, 10, 30], &[100], Exactly(2), &[2], &[40]);
        check(&[10, 10, 10, 30], &[35], Exactly(3), &[1], &[30]);
        check(&[10, 10, 10, 30], &[100], Exactly(99), &[4], &[60]);
        check(&[10, 10, 10, 30], &[100], Exactly(0), &[0], &[0]);
    }

    #[test]
    fn several_devices() {
        use Wanted::*;
        check(&[10; 8], &[100, 100], Auto, &[4, 4], &[40, 40]);
        check(&[10; 8], &[300, 100], Auto, &[6, 2], &[60, 20]);
        check(&[10; 8], &[30, 30], Auto, &[3, 3], &[30, 30]);
        check(&[10; 9], &[1000, 1000, 1000], Exactly(5), &[2, 1, 2], &[20, 10, 20]);
        // One that is full, or gone.
        check(&[10; 4], &[0, 100], Auto, &[0, 4], &[0, 40]);
        check(&[10; 4], &[0, 0], Auto, &[0, 0], &[0, 0]);
        check(&[10; 4], &[], Auto, &[], &[]);
        check(&[u64::MAX, u64::MAX], &[u64::MAX, u64::MAX], Auto, &[1, 1], &[u64::MAX, u64::MAX]);
    }

    #[test]
    fn whatever_is_placed_fits() {
        let mut x = 1u64;
        let mut next = |n: u64| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) % n
        };
        for _ in 0..2000 {
            let layers: Vec<u64> = (0..next(40)).map(|_| 1 + next(100)).collect();
            let rooms: Vec<u64> = (0..next(5)).map(|_| next(1500)).collect();
            let placed = place(&layers, &rooms, Wanted::Auto);
            assert!(placed.bytes.iter().zip(&rooms).all(|(bytes, room)| bytes <= room), "{placed:?} in {rooms:?}");
            let sum: u64 = layers[layers.len() - placed.n_placed()..].iter().sum();
            assert_eq!(placed.bytes.iter().sum::<u64>(), sum);
        }
    }
}
