//! A figure as a list of shapes, and its output as a PNG or an SVG.
//!
//! Figures are plain functions that add shapes in pixels of the final picture (y downwards), which keeps them free of the two
//! backends' types and lets tests read the contents of a picture. A PNG is drawn at twice its size and averaged down, since the
//! bitmap backend works in whole pixels; an SVG gets the same doubled coordinates and halves them in its header. Text of a PNG is
//! set here glyph by glyph, because plotters drops the glyphs' left bearings, which makes the spacing of letters uneven.

use std::error::Error as StdError;
use std::io::Write;
use std::path::Path;

use plotters::prelude::{BitMapBackend, DrawingBackend, SVGBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, TextStyle};

use super::font;
use super::palette::{LABEL_SIZE, NOTE_SIZE, PAPER, TEXT_SIZE, VEIL, WIDTH};

pub(super) use super::palette::Paint;
use crate::error::{Context, Error, Result};
use crate::files::{file_name, write_atomically};

pub(super) type Point = (f64, f64);

/// Which end of a text lies at its position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Anchor {
    Left,
    Middle,
    Right,
}

/// The style of a text. Its position is the anchor on the baseline; vertical text reads upwards.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    /// The em in pixels.
    pub size: f64,
    /// Is it bold?
    pub bold: bool,
    /// Does it read upwards?
    pub vertical: bool,
    /// Which of its ends lies at its position.
    pub anchor: Anchor,
    /// The colour of the text.
    pub paint: Paint,
}

impl Text {
    /// The style for the names of axes and panels.
    pub fn label(paint: Paint) -> Self {
        Self { size: LABEL_SIZE, bold: false, vertical: false, anchor: Anchor::Left, paint }
    }

    /// The style for tick labels and the lines below a title.
    pub fn body(paint: Paint) -> Self {
        Self { size: TEXT_SIZE, ..Self::label(paint) }
    }

    /// The style for notes.
    pub fn small(paint: Paint) -> Self {
        Self { size: NOTE_SIZE, ..Self::label(paint) }
    }

    /// The same style with another anchor.
    pub fn anchored(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }
}

#[derive(Debug, Clone)]
enum Shape {
    Rect { from: Point, to: Point, paint: Paint },
    Path { points: Vec<Point>, width: f64, paint: Paint },
    Polygon { points: Vec<Point>, paint: Paint },
    Text { at: Point, text: String, style: Text },
}

/// A figure as a list of shapes, each drawn over the previous ones.
#[derive(Debug, Clone)]
pub struct Scene {
    width: u32,
    height: u32,
    shapes: Vec<Shape>,
}

impl Scene {
    /// An empty figure of the standard width, with a height in pixels.
    pub fn new(height: u32) -> Self {
        let mut scene = Self { width: WIDTH, height, shapes: Vec::new() };
        scene.rect(0.0, 0.0, scene.width(), scene.height(), PAPER);
        scene
    }

    /// The width in pixels.
    pub fn width(&self) -> f64 {
        f64::from(self.width)
    }

    /// The height in pixels.
    pub fn height(&self) -> f64 {
        f64::from(self.height)
    }

    /// Adds a filled rectangle.
    pub fn rect(&mut self, left: f64, top: f64, right: f64, bottom: f64, paint: Paint) {
        self.shapes.push(Shape::Rect { from: (left, top), to: (right, bottom), paint });
    }

    /// Adds the edges of a rectangle, with a line width in pixels.
    pub fn outline(&mut self, left: f64, top: f64, right: f64, bottom: f64, width: f64, paint: Paint) {
        self.line(&[(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], width, paint);
    }

    /// Adds a line through the points, with a width in pixels.
    pub fn line(&mut self, points: &[Point], width: f64, paint: Paint) {
        self.shapes.push(Shape::Path { points: points.to_vec(), width, paint });
    }

    /// Adds a straight dashed line.
    pub fn dashes(&mut self, from: Point, to: Point, width: f64, paint: Paint) {
        const DASH: f64 = 7.0;
        const PERIOD: f64 = 12.0;
        let length = (to.0 - from.0).hypot(to.1 - from.1);
        let along = |at: f64| (from.0 + (to.0 - from.0) * at / length, from.1 + (to.1 - from.1) * at / length);
        let mut at = 0.0;
        while at < length {
            self.line(&[along(at), along((at + DASH).min(length))], width, paint);
            at += PERIOD;
        }
    }

    /// Adds a filled polygon.
    pub fn polygon(&mut self, points: Vec<Point>, paint: Paint) {
        self.shapes.push(Shape::Polygon { points, paint });
    }

    /// Adds a filled disc, as a polygon with 24 corners.
    pub fn dot(&mut self, at: Point, radius: f64, paint: Paint) {
        let corner = |idx: i32| {
            let (sin, cos) = (f64::from(idx) * std::f64::consts::TAU / 24.0).sin_cos();
            (at.0 + radius * cos, at.1 + radius * sin)
        };
        self.polygon((0..24).map(corner).collect(), paint);
    }

    /// Adds `text` as it is: escape it with [`font::printable`] if it comes from outside.
    pub fn text(&mut self, x: f64, baseline: f64, text: &str, style: Text) {
        self.shapes.push(Shape::Text { at: (x, baseline), text: text.to_owned(), style });
    }

    /// Adds text on a translucent background that keeps it readable above data.
    pub fn veiled_text(&mut self, x: f64, baseline: f64, text: &str, style: Text) {
        let (left, top, right, bottom) = text_box((x, baseline), text, &style);
        self.rect(left - 4.0, top - 2.0, right + 4.0, bottom + 2.0, VEIL);
        self.text(x, baseline, text, style);
    }

    /// Writes the figure as PNG or SVG, depending on the extension.
    pub fn save(&self, path: &Path) -> Result<()> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
        let drawn = match extension.as_str() {
            "png" => self.to_png(),
            "svg" => self.to_svg().map(String::into_bytes),
            _ => {
                return Err(Error::new(format!("expected a picture named .png or .svg, found `{}`", file_name(path)))
                    .at(path)
                    .cure("Give the picture one of these extensions."));
            }
        };
        let picture = drawn.context_at(path, "cannot draw the picture")?;
        write_atomically(path, |file| file.write_all(&picture).context("cannot write the picture"))
            .map_err(|error| error.cure("Check that the folder exists and has room."))
    }

    fn to_png(&self) -> Result<Vec<u8>, Cause> {
        let doubled = (self.width * SCALE, self.height * SCALE);
        let mut pixels = vec![255; doubled.0 as usize * doubled.1 as usize * 3];
        let mut canvas = BitMapBackend::with_buffer(&mut pixels, doubled);
        self.shapes.iter().try_for_each(|shape| draw_on_bitmap(&mut canvas, shape))?;
        canvas.present()?;
        drop(canvas);

        let mut picture = Vec::new();
        let mut encoder = png::Encoder::new(&mut picture, self.width, self.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_compression(png::Compression::Fast);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&halve(&pixels, self.width as usize, self.height as usize))?;
        writer.finish()?;
        Ok(picture)
    }

    fn to_svg(&self) -> Result<String, Cause> {
        let mut svg = String::new();
        let (width, height) = (self.width * SCALE, self.height * SCALE);
        let mut canvas = SVGBackend::with_string(&mut svg, (width, height));
        self.shapes.iter().try_for_each(|shape| draw_on_svg(&mut canvas, shape))?;
        canvas.present()?;
        drop(canvas);
        let doubled = format!(r#"width="{width}" height="{height}""#);
        Ok(svg.replacen(&doubled, &format!(r#"width="{}" height="{}""#, self.width, self.height), 1))
    }
}

/// Canvas pixels per pixel of the final picture.
const SCALE: u32 = 2;

type Cause = Box<dyn StdError + Send + Sync>;

fn draw_on_bitmap(canvas: &mut BitMapBackend, shape: &Shape) -> Result<(), Cause> {
    match shape {
        Shape::Text { at, text, style } => {
            let size = style.size * f64::from(SCALE);
            let shift = (anchor_shift(text, style) * f64::from(SCALE)).round() as i32;
            let (x, y) = on_canvas(*at);
            let mut outcome = Ok(());
            font::rasterise(text, size, style.bold, |right, down, coverage| {
                let (dx, dy) = if style.vertical { (down, -(right + shift)) } else { (right + shift, down) };
                let colour = style.paint.with_alpha(style.paint.alpha * f64::from(coverage)).colour();
                if outcome.is_ok() {
                    outcome = canvas.draw_pixel((x + dx, y + dy), colour.to_backend_color());
                }
            });
            outcome?;
        }
        textless => draw_textless(canvas, textless)?,
    }
    Ok(())
}

fn draw_on_svg(canvas: &mut SVGBackend, shape: &Shape) -> Result<(), Cause> {
    match shape {
        Shape::Text { at, text, style } => {
            // plotters writes `font-size = size / 1.24` and places text with a top anchor 0.76 em above its baseline.
            let size = style.size * f64::from(SCALE);
            let h_pos = match style.anchor {
                Anchor::Left => HPos::Left,
                Anchor::Middle => HPos::Center,
                Anchor::Right => HPos::Right,
            };
            let hang = 0.76 * style.size;
            let at = if style.vertical { (at.0 - hang, at.1) } else { (at.0, at.1 - hang) };
            let weight = if style.bold { FontStyle::Bold } else { FontStyle::Normal };
            let turn = if style.vertical { FontTransform::Rotate270 } else { FontTransform::None };
            let colour = style.paint.colour();
            let text_style = TextStyle::from((font::FAMILY, size * 1.24, weight))
                .transform(turn)
                .color(&colour)
                .pos(Pos::new(h_pos, VPos::Top));
            canvas.draw_text(text, &text_style, on_canvas(at))?;
        }
        textless => draw_textless(canvas, textless)?,
    }
    Ok(())
}

fn draw_textless<B: DrawingBackend>(canvas: &mut B, shape: &Shape) -> Result<(), Cause>
where
    B::ErrorType: 'static,
{
    match shape {
        Shape::Rect { from, to, paint } => canvas.draw_rect(on_canvas(*from), on_canvas(*to), &paint.shape(1), true)?,
        Shape::Path { points, width, paint } => {
            let width = (width * f64::from(SCALE)).round().max(1.0) as u32;
            // Equal neighbours have no direction, which the bitmap backend needs for thick lines.
            let mut points: Vec<_> = points.iter().map(|point| on_canvas(*point)).collect();
            points.dedup();
            if points.len() > 1 {
                canvas.draw_path(points, &paint.shape(width))?;
            }
        }
        Shape::Polygon { points, paint } => {
            canvas.fill_polygon(points.iter().map(|point| on_canvas(*point)), &paint.shape(1))?;
        }
        Shape::Text { .. } => {}
    }
    Ok(())
}

fn on_canvas((x, y): Point) -> (i32, i32) {
    ((x * f64::from(SCALE)).round() as i32, (y * f64::from(SCALE)).round() as i32)
}

/// Averages 2 by 2 pixels of three bytes each; `width` and `height` are those of the result.
fn halve(pixels: &[u8], width: usize, height: usize) -> Vec<u8> {
    let mut halved = Vec::with_capacity(width * height * 3);
    for rows in pixels.chunks_exact(2 * 2 * width * 3) {
        let (upper, lower) = rows.split_at(2 * width * 3);
        for (above, below) in upper.chunks_exact(6).zip(lower.chunks_exact(6)) {
            for channel in 0..3 {
                let sum =
                    [above[channel], above[channel + 3], below[channel], below[channel + 3]].map(u16::from).iter().sum::<u16>();
                halved.push(((sum + 2) / 4) as u8);
            }
        }
    }
    halved
}

/// The offset along the baseline from the anchor to the start of the text.
fn anchor_shift(text: &str, style: &Text) -> f64 {
    let width = font::width(text, style.size, style.bold);
    match style.anchor {
        Anchor::Left => 0.0,
        Anchor::Middle => -width / 2.0,
        Anchor::Right => -width,
    }
}

/// The left, top, right and bottom of a text, from the height of its capitals to a little below the baseline.
fn text_box((x, y): Point, text: &str, style: &Text) -> (f64, f64, f64, f64) {
    let (begin, width) = (anchor_shift(text, style), font::width(text, style.size, style.bold));
    let (rise, drop) = (0.76 * style.size, 0.2 * style.size);
    match style.vertical {
        false => (x + begin, y - rise, x + begin + width, y + drop),
        true => (x - rise, y - begin - width, x + drop, y - begin),
    }
}

#[cfg(test)]
impl Scene {
    /// All texts of the figure.
    pub fn texts(&self) -> Vec<&str> {
        let mut texts = Vec::new();
        for shape in &self.shapes {
            if let Shape::Text { text, .. } = shape {
                texts.push(text.as_str());
            }
        }
        texts
    }

    /// The centres and radii of the discs, in drawing order.
    pub fn dots(&self) -> Vec<(Point, f64)> {
        let of = |shape: &Shape| match shape {
            Shape::Polygon { points, .. } if points.len() == 24 => {
                let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / 24.0, y + point.1 / 24.0));
                Some(((x, y), (points[0].0 - x).abs()))
            }
            _ => None,
        };
        self.shapes.iter().filter_map(of).collect()
    }

    /// The texts, and the backgrounds of texts, that overlap a rectangle of one of these colours, such as the cells of a map.
    pub fn texts_over(&self, paints: &[Paint]) -> Vec<String> {
        let touches = |a: (f64, f64, f64, f64), from: Point, to: Point| a.0 < to.0 && from.0 < a.2 && a.1 < to.1 && from.1 < a.3;
        let of_data = |shape: &&Shape| matches!(shape, Shape::Rect { paint, .. } if paints.contains(paint));
        let data: Vec<&Shape> = self.shapes.iter().filter(of_data).collect();
        let covers = |a: (f64, f64, f64, f64)| {
            data.iter().any(|shape| matches!(shape, Shape::Rect { from, to, .. } if touches(a, *from, *to)))
        };
        let of = |shape: &Shape| match shape {
            Shape::Text { at, text, style } => covers(text_box(*at, text, style)).then(|| text.clone()),
            Shape::Rect { from, to, paint: VEIL } => covers((from.0, from.1, to.0, to.1)).then(|| "a veil".to_owned()),
            _ => None,
        };
        self.shapes.iter().filter_map(of).collect()
    }

    /// The texts over which a line of this colour is drawn later.
    pub fn texts_struck_by(&self, paint: Paint) -> Vec<&str> {
        let crosses = |a: (f64, f64, f64, f64), from: Point, to: Point| {
            let ((left, right), (top, bottom)) = ((from.0.min(to.0), from.0.max(to.0)), (from.1.min(to.1), from.1.max(to.1)));
            a.0 < right && left < a.2 && a.1 < bottom.max(top + 1.0) && top < a.3
        };
        let mut struck = Vec::new();
        for (idx, shape) in self.shapes.iter().enumerate() {
            let Shape::Text { at, text, style } = shape else { continue };
            let place = text_box(*at, text, style);
            let is_struck = self.shapes[idx + 1..].iter().any(|shape| match shape {
                Shape::Path { points, paint: other, .. } if *other == paint => {
                    points.windows(2).any(|pair| crosses(place, pair[0], pair[1]))
                }
                _ => false,
            });
            if is_struck {
                struck.push(text.as_str());
            }
        }
        struck
    }

    /// Panics if two texts overlap or a text leaves the picture.
    pub fn check_texts(&self) {
        let boxes: Vec<_> = self
            .shapes
            .iter()
            .filter_map(|shape| match shape {
                Shape::Text { at, text, style } => Some((text, text_box(*at, text, style))),
                _ => None,
            })
            .collect();
        for (idx, (text, a)) in boxes.iter().enumerate() {
            assert!(
                a.0 >= 0.0 && a.1 >= 0.0 && a.2 <= self.width() && a.3 <= self.height(),
                "`{text}` leaves the picture: {a:?}"
            );
            for (other, b) in &boxes[idx + 1..] {
                assert!(a.2 <= b.0 || b.2 <= a.0 || a.3 <= b.1 || b.3 <= a.1, "`{text}` {a:?} touches `{other}` {b:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halving_averages_squares_of_four_pixels() {
        let pixels = [[0, 0, 0], [10, 20, 30], [20, 40, 60], [30, 60, 90]].concat();
        assert_eq!(halve(&pixels, 1, 1), [15, 30, 45]);
    }

    #[test]
    fn a_picture_is_a_png_or_an_svg_and_the_folder_must_exist() {
        let folder = tempfile::tempdir().unwrap();
        let scene = Scene::new(100);
        let wrong = scene.save(&folder.path().join("map.gif")).unwrap_err();
        assert!(wrong.message().contains("expected a picture named .png or .svg, found `map.gif`"), "{wrong}");
        let absent = scene.save(&folder.path().join("absent/map.png")).unwrap_err();
        assert!(absent.to_string().contains("No such file or directory"), "{absent}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
    }

    /// /dev/full is a full disk, and stands here where the unfinished picture goes.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_said_in_the_words_of_the_system() {
        let folder = tempfile::tempdir().unwrap();
        for extension in ["png", "svg"] {
            let path = folder.path().join(format!("map.{extension}"));
            std::os::unix::fs::symlink("/dev/full", path.with_file_name(format!(".map.{extension}.partial"))).unwrap();
            let error = Scene::new(100).save(&path).unwrap_err().to_string();
            let expected = format!(
                "{}: cannot write the file\n  caused by: No space left on device (os error 28)\n  Check that the folder exists and \
                 has room.",
                path.display()
            );
            assert_eq!(error, expected);
        }
    }
}
