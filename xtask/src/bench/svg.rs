//! The little of SVG that charts need.

use std::fmt::Write;

pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, color: &str) {
        let shape = format!(r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{color}"/>"#);
        self.push(&shape);
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), color: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let shape = format!(r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{color}"/>"#);
        self.push(&shape);
    }

    pub(super) fn curve(&mut self, points: &[(f64, f64)], color: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let points = points.join(" ");
        self.push(&format!(r#"<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>"#));
    }

    /// `size` in pixels.
    pub(super) fn text(&mut self, x: f64, y: f64, size: u32, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        self.push(&format!(
            r##"<text x="{x:.1}" y="{y:.1}" font-size="{size}" text-anchor="{anchor}" fill="#222">{text}</text>"##
        ));
    }

    pub(super) fn finish(self) -> String {
        let Self { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n{body}</svg>\n"
        )
    }

    fn push(&mut self, shape: &str) {
        let _ = writeln!(self.body, "{shape}");
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Every element is closed, in order, attributes are quoted, and no number is none.
    pub(crate) fn assert_well_formed(svg: &str) {
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let mut open = Vec::new();
        let mut rest = svg;
        while let Some(start) = rest.find('<') {
            assert!(!rest[..start].contains('>'), "a stray > in {svg}");
            let end = rest[start..].find('>').unwrap_or_else(|| panic!("an unfinished element in {svg}"));
            let tag = &rest[start + 1..start + end];
            rest = &rest[start + end + 1..];
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "{svg}");
                continue;
            }
            assert!(!tag.contains('<'), "a stray < in {tag}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            let (name, attributes) = tag.trim_end_matches('/').split_once(' ').unwrap();
            assert!(
                attributes.split('"').step_by(2).all(|part| part.trim().is_empty() || part.ends_with('=')),
                "{tag}"
            );
            if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{svg}");
        for (at, _) in svg.match_indices('&') {
            assert!(["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|entity| svg[at..].starts_with(entity)));
        }
    }

    #[test]
    fn what_it_draws_is_well_formed() {
        let mut svg = Svg::new(100.0, 50.0);
        svg.rect(0.0, 0.5, 10.0, 1e6, "#123456");
        svg.line((0.0, 0.0), (1.0, 1.0), "#000");
        svg.curve(&[(0.0, 1.0), (2.0, 3.0)], "#000");
        svg.text(1.0, 2.0, 12, Anchor::Middle, "a < b & \"c\" > d");
        let svg = svg.finish();
        assert_well_formed(&svg);
        assert!(svg.contains("a &lt; b &amp; &quot;c&quot; &gt; d"));
    }

    #[test]
    #[should_panic(expected = "assertion")]
    fn the_check_can_fail() {
        assert_well_formed("<svg x=\"1\"><g y=\"2\"></svg></g>");
    }
}
