"""Texts that try to act, hide, break out or exhaust: every payload in every context that Markdown, HTML and LaTeX offer."""

from __future__ import annotations

ACTS = (
    "<script>window.pwned=1</script>",
    "<ScRiPt src=//pictures.invalid/x.js></sCrIpT>",
    "<img src=x onerror=window.pwned=1>",
    "<svg/onload=window.pwned=1>",
    "<svg><script>window.pwned=1</script></svg>",
    "<math><mtext><img src=x onerror=window.pwned=1></mtext></math>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<object data='javascript:window.pwned=1'></object>",
    "<embed src='javascript:window.pwned=1'>",
    "<a href='javascript:window.pwned=1' autofocus onfocus=window.pwned=1>x</a>",
    "<input autofocus onfocus=window.pwned=1>",
    "<details open ontoggle=window.pwned=1><summary>x</summary></details>",
    "<video><source onerror=window.pwned=1></video>",
    "<body onload=window.pwned=1>",
    "<form action='//pictures.invalid'><button>send</button></form>",
    "<meta http-equiv=refresh content='0;url=//pictures.invalid'>",
    "<base href='//pictures.invalid/'>",
    "<link rel=stylesheet href='//pictures.invalid/x.css'>",
    "<style>@import '//pictures.invalid/x.css';*{display:none}</style>",
    "<div style='background:url(//pictures.invalid/x.png);position:fixed;inset:0'>x</div>",
    "<template><img src=x onerror=window.pwned=1></template>",
    "<noscript><p title='</noscript><img src=x onerror=window.pwned=1>'>",
    "<!--><img src=x onerror=window.pwned=1>-->",
    "<![CDATA[><img src=x onerror=window.pwned=1>]]>",
    "<?xml-stylesheet href='javascript:window.pwned=1'?>",
    "&lt;img src=x onerror=window.pwned=1&gt;",
    "&#60;img src=x onerror=window.pwned=1&#62;",
    "javascript:window.pwned=1",
    "jav\tascript:window.pwned=1",
    "data:text/html;base64,PHNjcmlwdD53aW5kb3cucHduZWQ9MTwvc2NyaXB0Pg==",
    "${window.pwned=1} {{constructor.constructor('window.pwned=1')()}} #{1} <%= 1 %>",
    "'-window.pwned=1-'",
    '"onmouseover="window.pwned=1',
    "</script></style></textarea></title></pre><img src=x onerror=window.pwned=1>",
    "\u202e\u2066<img src=x onerror=window.pwned=1>\u2069",
)
"""window.pwned is what they would set; no request may go to pictures.invalid."""

PLACES = (
    "{}",
    "**{}**",
    "`{}`",
    "```html\n{}\n```",
    "```{}\ncode\n```",
    "> {}",
    "1. {}",
    "| a | b |\n|---|---|\n| {} | {} |",
    "[text]({})",
    "[{}](https://example.org)",
    "![{}](https://pictures.invalid/x.png)",
    "<{}>",
    "[x]: {}\n\n[x]",
    "${}$",
    "$$\\text{{{}}}$$",
    "\\(\\href{{{}}}{{x}}\\)",
)

BREAKS = (
    "=cmd|'/c calc'!A0", "+1+1", "-1+1", "@SUM(1)", "\t=1+1", "\r=1+1", "'; DROP TABLE judgments; --", '" OR 1=1 --',
    "\r\nSet-Cookie: session=1", "../../../etc/passwd", "%00%0a%0d", "\u2028\u2029\ufeff", "\x1b[31m\x07", "a\u0301" * 400,
    "\u202egnp.exe", "\U000e0041\U000e0042", "\u200b\u200c\u200d\u2060", "__proto__", "constructor", "toString",
    "null", "NaN", "-0", "1e999", "[" * 900, "{" * 900, "(" * 900, "*" * 900, "_" * 900, "`" * 900, "<" * 900, ">" * 900,
    "![" * 400, "$" * 900, "\\" * 900, "| " * 400, "- " * 400, "#" * 400, "\U0001f468\u200d\U0001f469\u200d\U0001f467" * 50,
)  # fmt: skip

CORPUS = tuple(place.format(*[act] * place.count("{}")) for act in ACTS for place in PLACES) + BREAKS
