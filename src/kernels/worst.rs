//! The largest difference between numbers in a test. `tests/tests.rs` includes this file, too.

/// The largest of these differences, which must not be negative; NaN if one of them is, which `max` would ignore.
pub(crate) fn worst<F: Into<f64>>(differences: impl IntoIterator<Item = F>) -> f64 {
    let larger = |worst: f64, difference: f64| if worst.is_nan() || difference <= worst { worst } else { difference };
    differences.into_iter().map(Into::into).fold(0.0, larger)
}

#[test]
fn what_is_not_a_number_is_the_worst_wherever_it_stands() {
    for differences in [[f32::NAN, 1.0, 2.0], [1.0, f32::NAN, 2.0], [1.0, 2.0, f32::NAN]] {
        assert!(worst(differences).is_nan(), "{differences:?}");
    }
    assert_eq!((worst([1.0f32, 3.0, 2.0]), worst([f64::INFINITY, 1.0]), worst::<f32>([])), (3.0, f64::INFINITY, 0.0));
}
