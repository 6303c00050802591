"""`airflow edgecontrol`: what operators do, over the operator API, from wherever Airflow is installed.

Which operations there are, and with which parameters, says the control plane's table in `operations.json`; nothing is
decided here.
"""

from __future__ import annotations
