"""The servers and workers of one machine, on loopback only: `python -m flows.services up|down|status|deploy`.

The servers listen on 127.0.0.1, and there is no option to change that: nobody has to log in, and whoever has an account
on the machine may use them. For several machines, or with passwords, take the compose file in `docker/`.
"""
