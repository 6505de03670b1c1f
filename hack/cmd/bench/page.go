package main

import (
	_ "embed"
	"errors"
	"html"
	"html/template"
	"os"
	"strings"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"plot": func(s section) template.HTML { return template.HTML(s.plot()) },
	"code": codeSpans,
	"ours": func(row []string) bool { return strings.HasPrefix(row[0], ourName) },
}).Parse(pageText))

// codeSpans shows what stands between backticks as code.
func codeSpans(s string) template.HTML {
	var b strings.Builder
	for i, part := range strings.Split(html.EscapeString(s), "`") {
		if i%2 == 1 {
			part = "<code>" + part + "</code>"
		}
		b.WriteString(part)
	}
	return template.HTML(b.String())
}

// writePage shows reports to who would rather look than read.
func writePage(name string, all []report) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(pageTemplate.Execute(f, all), f.Close())
}
