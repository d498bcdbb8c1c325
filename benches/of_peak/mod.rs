//! A criterion measurement that shows throughput beside its share of the machine's peak (`diagnose::kernels::peak`). Like the
//! program, it keeps freed memory in the process; otherwise the kernel's clearing of pages would be measured, too.

use std::time::{Duration, Instant};

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use diagnose::kernels::level::Level;
use diagnose::kernels::{Dtype, allocator, peak};

pub(crate) struct OfPeak {
    unit: &'static str,
    per_second: f64,
}

/// Benchmarks of matrix products in `dtype`. `Throughput::Elements` counts floating-point operations.
#[allow(dead_code, reason = "each bench is a crate of its own and uses what it needs")]
pub(crate) fn of_flops(dtype: Dtype) -> Criterion<OfPeak> {
    allocator::keep_freed_memory();
    let level = Level::current();
    let per_second = peak::flops(level, dtype);
    println!("\npeak of {level} in {dtype}: {:.0} GFLOP/s", per_second / 1e9);
    Criterion::default().configure_from_args().with_measurement(OfPeak { unit: "GFLOP/s", per_second })
}

/// Benchmarks that are limited by memory bandwidth. `Throughput::Bytes` counts bytes read and written; data that fit a cache may
/// exceed 100 %.
#[allow(dead_code, reason = "each bench is a crate of its own and uses what it needs")]
pub(crate) fn of_bandwidth() -> Criterion<OfPeak> {
    allocator::keep_freed_memory();
    let per_second = peak::bandwidth();
    println!("\nmemory bandwidth (triad): {:.1} GB/s", per_second / 1e9);
    Criterion::default().configure_from_args().with_measurement(OfPeak { unit: "GB/s", per_second })
}

impl Measurement for OfPeak {
    type Intermediate = Instant;
    type Value = Duration;

    fn start(&self) -> Instant {
        WallTime.start()
    }
    fn end(&self, began: Instant) -> Duration {
        WallTime.end(began)
    }
    fn add(&self, a: &Duration, b: &Duration) -> Duration {
        WallTime.add(a, b)
    }
    fn zero(&self) -> Duration {
        WallTime.zero()
    }
    fn to_f64(&self, duration: &Duration) -> f64 {
        WallTime.to_f64(duration)
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for OfPeak {
    fn format_throughput(&self, throughput: &Throughput, nanoseconds: f64) -> String {
        let (Throughput::Elements(amount) | Throughput::Bytes(amount)) = throughput else {
            return WallTime.formatter().format_throughput(throughput, nanoseconds);
        };
        let per_second = *amount as f64 / nanoseconds * 1e9;
        format!("{:.1} {} ({:.0} %)", per_second / 1e9, self.unit, 100.0 * per_second / self.per_second)
    }
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }
    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_throughputs(typical, throughput, values)
    }
    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}
