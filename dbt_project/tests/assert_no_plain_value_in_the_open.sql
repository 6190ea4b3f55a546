-- No address or device id of any accepted message stands in a column that is not masked.
select kind, values_in_the_open
from {{ ref('stg_sqs__mask_consistency') }}
where values_in_the_open > 0
