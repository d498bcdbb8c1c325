//! How far numbers are apart in a test. `tests/` has this very file, too.

/// The largest of these differences, which are not negative; not a number if one of them is none, over which `max` would pass.
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
