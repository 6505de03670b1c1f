"""Serves the sums of sales.csv; with --once it prints them and ends."""

import sys

import flask
import pandas

app = flask.Flask(__name__)


def totals():
    sales = pandas.read_csv("/app/sales.csv")
    return sales.groupby("city")["amount"].sum().to_dict()


@app.get("/")
def index():
    return flask.jsonify({city: int(sum) for city, sum in totals().items()})


if __name__ == "__main__":
    if "--once" in sys.argv:
        print(*(f"{city}={sum}" for city, sum in sorted(totals().items())))
    else:
        app.run(host="127.0.0.1", port=8080)
