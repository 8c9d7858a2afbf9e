"""How the HTML pages look."""

STYLE = """
:root { --ink: #1b1f24; --soft: #5b6470; --line: #e2e5e9; --accent: #1f5fbf; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); margin: 0;
       background: #f6f7f9; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 30px; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 20px; margin: 0 0 12px; }
.sub { color: var(--soft); margin: 0 0 24px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px; margin: 0 0 20px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 0 0 20px; }
.fact { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px; }
.fact b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; color: var(--accent); }
.fact span { color: var(--soft); font-size: 14px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; }
figcaption, .note { color: var(--soft); font-size: 14px; margin-top: 8px; }
pre { background: #f6f7f9; border-radius: 8px; padding: 14px; overflow-x: auto; font-size: 13px; }
"""
