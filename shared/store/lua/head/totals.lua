-- Included after records.lua in scripts that count many uses in one call. The counts go to the ledger in one command
-- per name, by `tally_up` at the end.

local totals = {}

local function tally(_, name, uses)
  totals[name] = (totals[name] or 0) + uses
end

local function tally_up(ledger)
  for name, uses in pairs(totals) do
    if uses > 0 then redis.call('HINCRBY', ledger, name, uses) end
  end
end
