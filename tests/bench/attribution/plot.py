"""Bar charts as SVG, by hand: one group a world, one bar a method."""

COLOURS = ["#2b6cb0", "#718096", "#a0aec0", "#cbd5e0", "#d69e2e", "#b7791f", "#c05621", "#9b2c2c", "#553c9a"]


def bars(path, title, groups, methods, value):
    """value(group, method) -> (height 0..1, low, high) or None."""
    bar, gap, height, left = 14, 26, 220, 44
    width = left + len(groups) * (len(methods) * bar + gap) + 20
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">' % (
        width, height + 70 + 16 * len(methods)), '<text x="%d" y="16" font-size="13">%s</text>' % (left, title)]
    y = lambda v: 30 + height * (1 - max(0.0, min(1.0, v)))
    for v in (0, 0.25, 0.5, 0.75, 1):
        out.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#e2e8f0"/>' % (left, width - 10, y(v), y(v)))
        out.append('<text x="%d" y="%.1f" text-anchor="end">%.2f</text>' % (left - 6, y(v) + 4, v))
    for g, group in enumerate(groups):
        x = left + 10 + g * (len(methods) * bar + gap)
        for m, method in enumerate(methods):
            got = value(group, method)
            if got is None:
                continue
            v, low, high = got
            out.append('<rect x="%.1f" y="%.1f" width="%d" height="%.1f" fill="%s"><title>%s, %s: %.3f</title></rect>' % (
                x + m * bar, y(v), bar - 2, y(0) - y(v), COLOURS[m % len(COLOURS)], group, method, v))
            out.append('<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#1a202c"/>' % (
                x + m * bar + 6, x + m * bar + 6, y(low), y(high)))
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%s</text>' % (
            x + len(methods) * bar / 2, height + 46, group))
    for m, method in enumerate(methods):
        at = height + 66 + 16 * m
        out.append('<rect x="%d" y="%d" width="11" height="11" fill="%s"/>' % (left, at - 10, COLOURS[m % len(COLOURS)]))
        out.append('<text x="%d" y="%d">%s</text>' % (left + 17, at, method))
    path.write_text("\n".join(out + ["</svg>"]) + "\n")
