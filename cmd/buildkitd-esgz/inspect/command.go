package inspect

import (
	"context"
	"errors"
	"fmt"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v3"
)

// Command is the subcommand of the daemon's program.
func Command() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "show how the layers of an image are laid out for lazy mounting",
		UsageText: "buildkitd-esgz inspect [options] IMAGE",
		// The daemon's own flags are not among its options.
		CustomHelpTemplate: cli.SubcommandHelpTemplate,
		Description: "IMAGE is a name in a registry, oci-layout://PATH[:TAG], or the path of an OCI layout: a directory or a tar. " +
			"Of a registry's layers the TOCs are fetched and nothing else, with the passwords of docker login.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "platform", Usage: "which image of several, such as linux/arm64; default: this machine's, or the only one"},
			&cli.StringFlag{Name: "metadata", Usage: "the --metadata-file of the build, which tells what of the prioritized files is read"},
			&cli.BoolFlag{Name: "plain-http", Usage: "ask the registry without TLS, as it is done for localhost anyway"},
			&cli.BoolFlag{Name: "all", Usage: "do not cut lists"},
			&cli.BoolFlag{Name: "json", Usage: "print all as JSON"},
			&cli.BoolFlag{Name: "svg", Usage: "print a picture of the layers"},
		},
		Action: run,
	}
}

// run prints the report also of an image with bad layers, and then fails.
func run(ctx context.Context, c *cli.Command) error {
	if c.Args().Len() != 1 {
		return errors.New("inspect: give the name of one image")
	}
	if c.Bool("json") && c.Bool("svg") {
		return errors.New("inspect: give --json or --svg, not both")
	}
	// What containerd logs of a request that fails, the error says.
	logrus.SetLevel(logrus.WarnLevel)
	im, err := Inspect(ctx, c.Args().First(), Options{
		Platform:  c.String("platform"),
		PlainHTTP: c.Bool("plain-http"),
		Metadata:  c.String("metadata"),
		Warnings:  c.Root().ErrWriter,
	})
	if err != nil {
		return fail(err)
	}
	w := c.Root().Writer
	switch {
	case c.Bool("json"):
		err = im.WriteJSON(w)
	case c.Bool("svg"):
		err = im.WriteSVG(w)
	default:
		err = im.WriteText(w, c.Bool("all"))
	}
	return fail(errors.Join(err, im.problems()))
}

// fail makes an error safe to print. It may quote a registry or an image.
func fail(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("inspect: %s", printable(err.Error()))
}
