/* report.html: one page without any outside resource. The answer first, then figures, then tables; light and dark by the reader's
 * setting; the tables sort by a click on a head where scripts are allowed and are complete where they are not. */
#include "ablate_tables.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Series colours keep apart for colour-blind readers (after Okabe and Ito 2008) and have 3:1 contrast with their background. */
static const char style[] =
    ":root{color-scheme:light dark;--bg:#fff;--axis:#59636e;--text:#1f2328;--muted:#59636e;--grid:#e1e5ea;--panel:#f6f8fa;--reference:#1f2328;--margin:#009e73;--good:#116149;"
    "--goodbg:#e8f6f0;--warn:#8a4500;--warnbg:#fdf3e4;--s0:#0072b2;--s1:#d55e00;--s2:#00876a;--s3:#a6498b;--s4:#a07400;--s5:#2f8fcf;--s6:#6b6b6b;--s7:#7a4a10}"
    "@media(prefers-color-scheme:dark){:root{--bg:#0d1117;--axis:#9198a1;--text:#e6edf3;--muted:#9aa4af;--grid:#2b323b;--panel:#161b22;--reference:#e6edf3;--margin:#2cc295;"
    "--good:#7ee2b8;--goodbg:#0f2a20;--warn:#f2b56b;--warnbg:#2d2110;--s0:#56b4e9;--s1:#ff8a3d;--s2:#2cc295;--s3:#e08cc0;--s4:#f0c541;--s5:#9db2ff;--s6:#b0b0b0;--s7:#d9a066}}"
    "body{font:16px/1.5 system-ui,sans-serif;background:var(--bg);color:var(--text);max-width:76rem;margin:0 auto;padding:1.2rem 1rem 4rem}"
    "h1{font-size:1.5rem;margin:.2rem 0 1rem}h1 small{color:var(--muted);font-weight:400}h2{font-size:1.15rem;margin:2.2rem 0 .5rem}"
    ".answer{background:var(--goodbg);border-left:5px solid var(--good);padding:.8rem 1rem;border-radius:4px}.answer.none,.alert{background:var(--warnbg);border-left:5px solid var(--warn)}"
    ".answer p{margin:.3rem 0}.answer p:first-child{font-size:1.1rem;font-weight:600}.alert{padding:.5rem 1rem;border-radius:4px}"
    "pre{overflow-x:auto;background:var(--panel);padding:.5rem .7rem;border-radius:4px;margin:.5rem 0;font-size:.85rem}code{font-size:.92em;overflow-wrap:anywhere}"
    ".facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.4rem,1fr));gap:.7rem;margin:1rem 0;padding:0}.facts div{background:var(--panel);border-radius:6px;padding:.6rem .8rem}"
    ".facts b{display:block;font-size:1.35rem;line-height:1.25}.facts span{color:var(--muted);font-size:.85rem}"
    ".figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1.2rem 2rem;align-items:start}figure{margin:0;min-width:0}"
    "figcaption{font-weight:600}figcaption small{display:block;font-weight:400;color:var(--muted);font-size:.82rem;line-height:1.35}svg{width:100%;height:auto;max-width:640px}"
    "svg text,svg tspan{font-family:system-ui,sans-serif}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-size:.84rem;font-variant-numeric:tabular-nums}td,th{padding:.28rem .6rem;border-bottom:1px solid var(--grid);text-align:right;"
    "white-space:nowrap}th{background:var(--panel);vertical-align:bottom;white-space:normal}td.t,th.t{text-align:left}td small{color:var(--muted)}tr.pick td{background:var(--goodbg);font-weight:600}"
    "tr.control td{color:var(--muted)}tr.failed td.t{color:var(--warn);white-space:normal;min-width:14rem}th[data-s]{cursor:pointer}th[data-s]:hover{text-decoration:underline}"
    "th[aria-sort=ascending]::after{content:' \\25b2'}th[aria-sort=descending]::after{content:' \\25bc'}"
    ".note{color:var(--muted);font-size:.85rem}details{margin-top:1.5rem}summary{cursor:pointer;font-weight:600}li{margin:.15rem 0}"
    "@media print{details>*{display:block}}";

static const char script[] =
    "document.querySelectorAll('table').forEach(function(t){var h=t.tHead.rows[0].cells;[].forEach.call(h,function(c,i){c.dataset.s=1;c.tabIndex=0;c.title='sort';"
    "function go(){var up=c.getAttribute('aria-sort')!='ascending';[].forEach.call(h,function(o){o.removeAttribute('aria-sort')});c.setAttribute('aria-sort',up?'ascending':'descending');"
    "var key=function(r){var d=r.cells[i];return d.dataset.v!==undefined?+d.dataset.v:d.classList.contains('t')?d.textContent:null};"
    "[].slice.call(t.tBodies[0].rows).sort(function(x,y){var a=key(x),b=key(y);if(a===null||b===null)return(a===null)-(b===null);"
    "return(a<b?-1:a>b?1:0)*(up?1:-1)}).forEach(function(r){t.tBodies[0].appendChild(r)})}"
    "c.addEventListener('click',go);c.addEventListener('keydown',function(e){if(e.key=='Enter')go()})})});";

static void text(FILE *f, const char *s) { table_escape(f, 1, s); }

static void fact(FILE *f, const char *value, const char *what)
{
    fputs("<div><b>", f);
    text(f, value);
    fputs("</b><span>", f);
    text(f, what);
    fputs("</span></div>\n", f);
}

/* The numbers of the answer, or of what came nearest. */
static void facts(const struct ablation *a, FILE *f)
{
    int i = a->advice.pick >= 0 ? a->advice.pick : a->advice.nearest;
    const struct summary *base = ablate_find(a, a->H, "none", "consecutive", "ce", 0);
    if (i < 0 || !base)
        return;
    const struct summary *s = &a->summaries[i];
    char value[96], what[160], share[24], took[32];
    fputs("<div class=facts>\n", f);
    if (s->G < 0)
        snprintf(value, sizeof value, "%.3g%% of %lld", 100 * ablate_heads(a, s->G) / (double)a->H, (long long)a->H);
    else
        snprintf(value, sizeof value, "%lld of %lld", (long long)s->G, (long long)a->H);
    snprintf(what, sizeof what, "%s%s", s->G < 0 ? "key/value heads, chosen for each layer" : "key/value heads", a->advice.pick >= 0 ? "" : " (nearest)");
    fact(f, value, what);
    if (s->kv_bytes > 0 && base->kv_bytes > 0) {
        snprintf(value, sizeof value, "%.3g%%", 100.0 * (double)s->kv_bytes / (double)base->kv_bytes);
        snprintf(what, sizeof what, "of the K/V cache: %lld instead of %lld bytes per token", (long long)s->kv_bytes, (long long)base->kv_bytes);
        fact(f, value, what);
    }
    snprintf(value, sizeof value, "%+.4f", s->final.mean - base->final.mean);
    took[0] = 0;
    if (ablate_uncertainty(s) > 0)
        snprintf(took, sizeof took, ", +- %.4f", ablate_uncertainty(s));
    snprintf(what, sizeof what, "nats per token against the original%s%s", took, s->final.n > 1 ? ", mean over seeds" : "");
    fact(f, value, what);
    if (s->kl.n > 0) {
        snprintf(value, sizeof value, "%.4f", s->kl.mean);
        fact(f, value, "nats of KL to the original, per token");
    }
    if (s->task.n > 0 && base->task.n > 0) {
        snprintf(value, sizeof value, "%.1f%%", 100 * s->task.mean);
        snprintf(what, sizeof what, "mean task accuracy; the original: %.1f%%", 100 * base->task.mean);
        fact(f, value, what);
    }
    if (s->ms > 0 && base->ms > 0) {
        snprintf(value, sizeof value, "%.2f x", base->ms / s->ms);
        snprintf(what, sizeof what, "decode speed: %.3g instead of %.3g ms per token", s->ms, base->ms);
        fact(f, value, what);
    }
    ablate_percent(share, s->alpha);
    ablate_duration(took, s->uptrain_s.mean);
    snprintf(what, sizeof what, s->alpha > 0 ? "of the original tokens for uptraining, %s here" : "no uptraining%s", s->alpha > 0 ? took : "");
    fact(f, s->alpha > 0 ? share : "0%", what);
    fputs("</div>\n", f);
}

static int figure(const struct ablation *a, enum ablate_plot which, int64_t G, FILE *f)
{
    char title[128], note[256], prefix[48];
    char *script_text = ablate_plot_script(a, which, G), *svg = NULL;
    if (!script_text)
        return 0;
    snprintf(prefix, sizeof prefix, "f%dg%lld-", (int)which, (long long)G);
    svg = ablate_svg(script_text, prefix);
    free(script_text);
    if (!svg)
        return 0;
    ablate_plot_caption(a, which, G, title, sizeof title, note, sizeof note);
    fprintf(f, "<figure><figcaption>%s<small>", title);
    text(f, note);
    fprintf(f, "</small></figcaption>\n%s</figure>\n", svg);
    free(svg);
    return 1;
}

static void figures(const struct ablation *a, FILE *f)
{
    int64_t focus = ablate_focus(a);
    int drawn = 0;
    char *body = NULL;
    size_t n = 0;
    FILE *b = open_memstream(&body, &n);
    if (!b)
        return;
    for (int p = 0; ablate_have_gnuplot() && p < N_PLOTS; p++)
        drawn += figure(a, (enum ablate_plot)p, focus, b);
    fclose(b);
    if (drawn)
        fprintf(f, "<div class=figures>\n%s</div>\n", body);
    else
        fprintf(f, "<p class=note>%s</p>\n", ablate_have_gnuplot() ? "No figures: there is too little to draw, or gnuplot failed."
                                                                   : "No figures: gnuplot was not found when this report was written. The tables hold every number.");
    free(body);
}

/* Recovery and methods at the other counts. */
static void more_figures(const struct ablation *a, FILE *f)
{
    int64_t G[64], focus = ablate_focus(a);
    int groups = ablate_groups(a, G, 64), drawn = 0;
    char *body = NULL;
    size_t n = 0;
    FILE *b = ablate_have_gnuplot() ? open_memstream(&body, &n) : NULL;
    if (!b)
        return;
    for (int g = 0; g < groups && drawn < 12; g++)
        if (G[g] != focus && G[g] != a->H)
            drawn += figure(a, PLOT_RECOVERY, G[g], b) + figure(a, PLOT_METHODS, G[g], b);
    fclose(b);
    if (drawn)
        fprintf(f, "<details><summary>Recovery and starts at the other numbers of heads</summary><div class=figures>\n%s</div></details>\n", body);
    free(body);
}

static void answer(const struct ablation *a, FILE *f)
{
    const struct advice *d = &a->advice;
    char first[sizeof d->reason];
    snprintf(first, sizeof first, "%.*s", d->headline, d->reason);
    fprintf(f, "<div class=\"answer%s\"><p>", d->pick >= 0 ? "" : " none");
    text(f, first);
    if (d->reason[d->headline]) {
        fputs("</p>\n<p>", f);
        text(f, d->reason + d->headline + 1);
    }
    fputs("</p>\n", f);
    if (*d->next) {
        fputs("<p>", f);
        text(f, d->next);
        fputs("</p>\n", f);
    }
    if (*d->command) {
        fputs("<p>The checkpoint: <code>", f);
        text(f, d->path);
        fputs("</code>", f);
        if (*a->cells[d->cell].home) {
            fputs(" (", f);
            text(f, a->cells[d->cell].home);
            fputs(")", f);
        }
        fputs("</p><pre>", f);
        text(f, d->command);
        fputs("</pre>", f);
    }
    fputs("</div>\n", f);
}

static void worth(const struct ablation *a, FILE *f)
{
    int64_t G[64];
    char line[512];
    int groups = ablate_groups(a, G, 64), any = 0;
    for (int g = 0; g < groups; g++)
        if (ablate_worth(a, G[g], line, sizeof line)) {
            fputs(any++ ? "<li>" : "<ul><li>", f);
            text(f, line);
            fputs("</li>\n", f);
        }
    fputs(any ? "</ul>\n" : "", f);
}

char *ablate_html(const struct ablation *a)
{
    char *out = NULL, line[512];
    size_t n = 0;
    FILE *f = open_memstream(&out, &n);
    if (!f)
        return NULL;
    struct table t = { f, 1 };
    fprintf(f, "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content=\"width=device-width,initial-scale=1\"><title>How many key/value heads?</title>"
               "<style>%s</style></head><body>\n<h1>How many key/value heads? <small>",
            style);
    text(f, a->config.name ? a->config.name : "");
    fputs("</small></h1>\n", f);
    answer(a, f);
    if (*a->advice.warning) {
        fputs("<p class=alert>", f);
        text(f, a->advice.warning);
        fputs("</p>\n", f);
    }
    if (report_failures(a, line, sizeof line)) {
        fputs("<p class=alert>", f);
        text(f, line);
        fputs("</p>\n", f);
    }
    facts(a, f);
    figures(a, f);
    fputs("<h2>What each start is worth</h2>\n", f);
    worth(a, f);
    fputs("<p class=note>Nats per token above the original, held out.</p>\n", f);
    tables_starts(a, &t);
    fputs("<h2>Quality, size, speed</h2>\n", f);
    tables_summary(a, &t);
    fputs("<h2>Decode speed</h2>\n", f);
    tables_speed(a, &t);
    more_figures(a, f);
    fprintf(f, "<details%s><summary>All cells</summary>\n", report_failures(a, line, sizeof line) ? " open" : "");
    tables_cells(a, &t);
    fputs("</details>\n<p class=note>", f);
    text(f, report_notes);
    fputs("</p>\n<p class=note>", f);
    report_origin(f, a, 1);
    fprintf(f, "</p>\n<script>%s</script></body></html>\n", script);
    return fclose(f) == 0 ? out : (free(out), NULL);
}
