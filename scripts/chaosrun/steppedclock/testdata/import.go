package main

import _ "github.com/generic-corp/muster/scripts/chaosrun/steppedclock"
